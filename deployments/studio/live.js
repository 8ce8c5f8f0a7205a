// Sound while it is generated: 16-bit samples from the server, scheduled one buffer behind the other.
const AHEAD_SECONDS = 0.08; // until the first buffer plays: what a busy page needs to schedule it

export class LiveSound {
  // onHeard is called with the seconds that have arrived, onEnd once all have played; not after `stop`.
  constructor(context, url, onHeard, onEnd) {
    this.context = context;
    this.gain = context.createGain();
    this.gain.connect(context.destination);
    this.stopper = new AbortController();
    this.sources = new Set();
    this.next = 0;
    this.seconds = 0;
    this.#read(url, onHeard).catch(() => {}).finally(() => { this.#whenPlayed(onEnd); });
  }

  async #read(url, onHeard) {
    const answer = await fetch(url, {signal: this.stopper.signal});
    if (!answer.ok) return;
    const rate = Number(answer.headers.get("x-sample-rate")), channels = Number(answer.headers.get("x-channels"));
    const frameBytes = 2 * channels, reader = answer.body.getReader();
    let rest = new Uint8Array(0);
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const bytes = new Uint8Array(rest.length + part.value.length);
      bytes.set(rest);
      bytes.set(part.value, rest.length);
      const whole = bytes.length - bytes.length % frameBytes;
      rest = bytes.slice(whole);
      if (whole) this.#schedule(new DataView(bytes.buffer, 0, whole), rate, channels);
      onHeard(this.seconds);
    }
  }

  #schedule(samples, rate, channels) {
    const length = samples.byteLength / 2 / channels;
    const buffer = this.context.createBuffer(channels, length, rate);
    for (let channel = 0; channel < channels; channel++) {
      const values = buffer.getChannelData(channel);
      for (let i = 0; i < length; i++) values[i] = samples.getInt16(2 * (i * channels + channel), true) / 32768;
    }
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.gain);
    // Later than planned only if the server was slower than the music.
    this.next = Math.max(this.next, this.context.currentTime + AHEAD_SECONDS);
    source.start(this.next);
    this.next += buffer.duration;
    this.seconds += buffer.duration;
    this.sources.add(source);
    source.addEventListener("ended", () => this.sources.delete(source));
  }

  #whenPlayed(onEnd) {
    if (this.stopper.signal.aborted) return;
    this.timer = setTimeout(onEnd, Math.max(0, this.next - this.context.currentTime) * 1000);
  }

  stop() {
    this.stopper.abort();
    clearTimeout(this.timer);
    for (const source of this.sources) source.stop();
  }
}
