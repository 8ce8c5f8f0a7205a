// playerTracks: versions of one piece that play together, of which one is heard; a switch has no gap and keeps the position.
//
// Versions are decoded and started at one time of one audio clock, and their gains cross. A page from a disk can't read
// the files beside it: there, audio elements play together and those that aren't heard follow the one that is.
const playerTracks = (() => {
"use strict";
const FADE_SECONDS = 0.008, LEAD_SECONDS = 0.03;
const MOST_DECODED_SECONDS = 1500; // of all versions: 0.6 GB in stereo at 48 kHz
const DRIFT_SECONDS = 0.004, LOST_SECONDS = 0.2, FOLLOW_MS = 50;
const SILENT = 2 ** -13; // a volume
// Equal power: the squares of both curves sum to 1.
const RISE = new Float32Array(33).map((_, step) => Math.sin(step / 32 * Math.PI / 2));
const FALL = RISE.slice().reverse();
let context = null; // of all players of the page

async function bytesOf(url) {
  if (url.startsWith("data:")) return Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), one => one.charCodeAt(0)).buffer;
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.arrayBuffer();
}

class BufferTracks {
  static async load(urls) {
    const buffers = await Promise.all(urls.map(async url => context.decodeAudioData(await bytesOf(url))));
    return new BufferTracks(buffers);
  }

  constructor(buffers) {
    this.buffers = buffers;
    this.duration = Math.max(...buffers.map(buffer => buffer.duration));
    this.selected = this.offset = this.free = 0;
    this.run = null; // {begin, out, gains, sources} while it plays
  }

  get position() {
    if (!this.run) return this.offset;
    return Math.min(this.duration, Math.max(this.offset, context.currentTime - this.run.begin));
  }

  play(ended) {
    context.resume();
    const start = context.currentTime + LEAD_SECONDS, out = context.createGain();
    out.connect(context.destination);
    out.gain.setValueAtTime(0, start);
    out.gain.linearRampToValueAtTime(1, start + FADE_SECONDS);
    const gains = this.buffers.map((_, number) => {
      const gain = context.createGain();
      gain.gain.value = number === this.selected ? 1 : 0;
      gain.connect(out);
      return gain;
    });
    const sources = this.buffers.map((buffer, number) => {
      const source = context.createBufferSource();
      source.buffer = buffer;
      source.connect(gains[number]);
      source.start(start, this.offset);
      return source;
    });
    const run = this.run = {begin: start - this.offset, out, gains, sources};
    this.free = start;
    const longest = this.buffers.findIndex(buffer => buffer.duration === this.duration);
    sources[longest].onended = () => {
      if (this.run !== run) return;
      this.run = null;
      this.offset = 0;
      ended();
    };
  }

  pause() {
    this.offset = this.position;
    const {out, sources} = this.run, now = context.currentTime;
    this.run = null;
    out.gain.cancelScheduledValues(now);
    out.gain.setValueAtTime(out.gain.value, now);
    out.gain.linearRampToValueAtTime(0, now + FADE_SECONDS);
    for (const source of sources) source.stop(now + FADE_SECONDS);
  }

  select(number) {
    const before = this.selected;
    this.selected = number;
    if (!this.run || number === before) return;
    const at = Math.max(context.currentTime, this.free); // fades don't overlap: each begins at 0 and 1
    this.run.gains[before].gain.setValueCurveAtTime(FALL, at, FADE_SECONDS);
    this.run.gains[number].gain.setValueCurveAtTime(RISE, at, FADE_SECONDS);
    this.free = at + FADE_SECONDS * 1.01;
  }
}

class ElementTracks {
  static async load(urls) {
    const elements = urls.map(url => Object.assign(new Audio(), {preload: "auto", src: url, preservesPitch: false}));
    await Promise.all(elements.map(element => new Promise((loaded, failed) => {
      element.oncanplaythrough = loaded;
      element.onerror = () => failed(new Error(element.error?.message));
    })));
    return new ElementTracks(elements);
  }

  constructor(elements) {
    this.elements = elements;
    this.duration = Math.max(...elements.map(element => element.duration));
    this.selected = 0;
    this.timer = this.fade = 0;
  }

  get heard() { return this.elements[this.selected]; }
  get position() { return this.heard.currentTime; }
  get offset() { return this.position; }
  set offset(seconds) { for (const element of this.elements) element.currentTime = seconds; }

  play(ended) {
    for (const element of this.elements) {
      this.setVolume(element, element === this.heard ? 1 : 0);
      element.play().catch(() => {}); // paused again before it started
      element.onended = () => {
        if (element !== this.heard) return;
        this.pause();
        this.offset = 0;
        ended();
      };
    }
    this.timer = setInterval(() => this.follow(), FOLLOW_MS);
  }

  // The versions that aren't heard run a little faster or slower until they are where the heard one is.
  follow() {
    const at = this.position;
    for (const element of this.elements) {
      const late = element === this.heard ? 0 : at - element.currentTime;
      if (Math.abs(late) > LOST_SECONDS) element.currentTime = at;
      element.playbackRate = Math.abs(late) < DRIFT_SECONDS ? 1 : 1 + Math.max(-0.25, Math.min(0.25, 3 * late));
    }
  }

  pause() {
    clearInterval(this.timer);
    for (const element of this.elements) element.pause();
    const at = this.position;
    for (const element of this.elements) if (element !== this.heard) element.currentTime = at;
  }

  select(number) {
    const [before, after] = [this.heard, this.elements[number]];
    this.selected = number;
    if (before === after) return;
    after.playbackRate = before.playbackRate = 1;
    clearInterval(this.fade);
    for (const element of this.elements) if (element !== before && element !== after) this.setVolume(element, 0);
    const begin = performance.now();
    const step = () => {
      const done = Math.min(1, (performance.now() - begin) / 1000 / FADE_SECONDS);
      this.setVolume(before, done < 1 ? Math.cos(done * Math.PI / 2) : 0);
      this.setVolume(after, Math.sin(done * Math.PI / 2));
      if (done === 1) clearInterval(this.fade);
    };
    this.fade = setInterval(step, 2);
    step();
  }

  // Chromium suspends the output of muted elements, which then come late: those not heard play at −80 dB.
  setVolume(element, volume) {
    element.volume = Math.max(volume, SILENT);
    if (element.volume !== Math.max(volume, SILENT)) element.muted = volume === 0; // iOS: volume can't be set
  }
}

// Call it within a click, which is what allows sound.
async function load(urls, seconds) {
  context ??= new AudioContext();
  context.resume();
  const isReadable = location.protocol !== "file:" || urls.every(url => url.startsWith("data:"));
  if (isReadable && seconds * urls.length <= MOST_DECODED_SECONDS) {
    try {
      return await BufferTracks.load(urls);
    } catch { /* elements may still play it */ }
  }
  return ElementTracks.load(urls);
}

return {load};
})();
