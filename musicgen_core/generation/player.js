// <compare-player>: versions of one piece play together, of which one is heard; a switch has no gap and keeps the position.
//
// Attributes: data-comparison, JSON of {prompt, seed, variation, seconds, pieces: [{file, label, url or
// audio (id of an element), adapter}]}; votes,
// the URL that takes votes and answers with the tally, without which they stay in this browser. The texts are JSON in the
// attribute data-player of the body. Nothing is loaded before it is wanted.
(() => {
"use strict";
const SEEK_SECONDS = 5;
const STORED = "musicgen-votes";
// The studio shows the page of its folder as files/index.html?studio, and takes its votes, too.
const TAKES_VOTES = new URLSearchParams(location.search).has("studio") ? "../api/votes" : null;
const texts = JSON.parse(document.body.dataset.player ?? "{}");
const say = (name, values) => texts[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
let active = null; // the player that was used last

// Mulberry32: the order of a blind comparison can be made again from the seed in its vote.
function randomOf(seed) {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let mixed = Math.imul(seed ^ seed >>> 15, 1 | seed);
    mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed;
    return ((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32;
  };
}

function shuffled(items, seed) {
  const random = randomOf(seed), rest = [...items];
  return items.map(() => rest.splice(Math.floor(random() * rest.length), 1)[0]);
}

const unstored = []; // votes that a page without storage keeps until it is closed
function storedVotes() {
  try {
    return [...JSON.parse(localStorage.getItem(STORED) ?? "[]"), ...unstored];
  } catch {
    return unstored;
  }
}

function storeVote(vote) {
  try {
    localStorage.setItem(STORED, JSON.stringify([...storedVotes(), vote]));
  } catch {
    unstored.push(vote);
  }
}

function make(kind, className, text = "", attributes = {}) {
  const element = document.createElement(kind);
  element.className = className;
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

class ComparePlayer extends HTMLElement {
  connectedCallback() {
    if (this.comparison) return;
    this.comparison = JSON.parse(this.dataset.comparison);
    this.pieces = this.comparison.pieces;
    this.selected = 0;
    this.isPlaying = this.isBlind = this.isRevealed = false;
    this.playButton = this.button("play", "▶", () => this.toggle(), {"aria-keyshortcuts": "Space"});
    this.switches = make("div", "switches", "", {role: "group", "aria-label": texts.compare});
    this.slider = make("input", "seek", "", {type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": texts.position});
    this.slider.addEventListener("input", () => this.seek(this.slider.valueAsNumber));
    this.time = make("span", "time", clock(0));
    this.blindButton = this.button("blind", texts.blind, () => this.setBlind(!this.isBlind));
    this.ballot = make("div", "ballot");
    this.status = make("p", "status", "", {role: "status"});
    this.tally = make("div", "tally");
    const line = make("div", "line"), foot = make("div", "foot");
    line.append(this.playButton, this.slider, this.time);
    foot.append(make("span", "keys", texts.keys), this.blindButton);
    this.append(this.switches, line, this.ballot, this.status, this.tally, foot);
    this.addEventListener("keydown", event => this.press(event));
    this.addEventListener("pointerdown", () => { active = this; });
    this.addEventListener("focusin", () => { active = this; });
    this.show();
  }

  disconnectedCallback() {
    this.stop();
    this.tracks = this.loading = null;
  }

  button(className, text, clicked, attributes = {}) {
    const button = make("button", className, text, {type: "button", ...attributes});
    button.addEventListener("click", clicked);
    return button;
  }

  // The versions that the switches offer: all, or two without names.
  get offered() { return this.isBlind ? this.pair : this.pieces; }

  show() {
    this.switches.replaceChildren(...this.offered.map((piece, number) => {
      const key = this.isBlind ? "AB"[number] : `${number + 1}`;
      const button = this.button("switch", "", () => this.select(number), {"aria-keyshortcuts": key});
      const isNamed = !this.isBlind || this.isRevealed;
      button.append(make("kbd", "", key), make("span", "", isNamed ? piece.label : ""));
      if (!isNamed) button.setAttribute("aria-label", key);
      return button;
    }));
    this.blindButton.setAttribute("aria-pressed", this.isBlind);
    this.closest("section")?.classList.toggle("is-blind", this.isBlind && !this.isRevealed);
    this.showState();
  }

  showState() {
    [...this.switches.children].forEach((button, number) => button.setAttribute("aria-pressed", number === this.selected));
    this.playButton.textContent = this.isPlaying ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", this.isPlaying ? texts.pause : texts.play);
    this.showTime();
  }

  showTime() {
    const at = this.tracks?.position ?? 0, all = this.tracks?.duration ?? this.comparison.seconds ?? 0;
    this.slider.max = all || 1;
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", clock(at));
    this.time.textContent = `${clock(at)} / ${clock(all)}`;
    if (this.isPlaying) requestAnimationFrame(() => this.isPlaying && this.showTime());
  }

  load() {
    this.loading ??= this.loadTracks();
    return this.loading;
  }

  async loadTracks() {
    this.status.textContent = texts.loading;
    this.tracks = await playerTracks.load(this.pieces.map(piece => piece.url ?? document.getElementById(piece.audio).src), this.comparison.seconds ?? 0);
    this.status.textContent = this.isBlind && !this.isRevealed ? texts.listen : "";
    this.tracks.select(this.pieces.indexOf(this.offered[this.selected]));
  }

  async toggle() {
    active = this;
    if (this.isPlaying) return this.stop();
    for (const other of document.querySelectorAll("compare-player")) if (other !== this) other.release();
    for (const audio of document.querySelectorAll("audio")) audio.pause();
    try {
      await this.load();
    } catch {
      this.loading = null;
      this.status.textContent = texts.unreadable;
      return;
    }
    if (this.isPlaying || active !== this || !this.isConnected) return; // pressed twice while it was loading
    this.begin();
  }

  begin() {
    this.isPlaying = true;
    this.tracks.play(() => { this.isPlaying = false; this.showState(); });
    this.showState();
  }

  stop() {
    if (!this.isPlaying) return;
    this.isPlaying = false;
    this.tracks.pause();
    this.showState();
  }

  // Decoded sound is large: only the player in use keeps its own.
  release() {
    this.stop();
    if (!this.tracks) return;
    this.tracks = this.loading = null;
    this.showState();
  }

  select(number) {
    if (number >= this.offered.length) return;
    this.selected = number;
    this.tracks?.select(this.pieces.indexOf(this.offered[number]));
    this.showState();
  }

  seek(seconds) {
    if (!this.tracks) return;
    const wasPlaying = this.isPlaying;
    this.stop();
    this.tracks.offset = Math.max(0, Math.min(this.tracks.duration - 0.01, seconds));
    if (wasPlaying) this.begin();
    else this.showState();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const number = /^[1-9]$/.test(event.key) ? event.key - 1 : "ab".indexOf(event.key.toLowerCase());
    const steps = {ArrowLeft: -SEEK_SECONDS, ArrowRight: SEEK_SECONDS}, isOther = event.target.closest?.(".ballot, .foot");
    if (event.key in steps) this.seek((this.tracks?.position ?? 0) + steps[event.key]);
    else if (event.key === " " && !isOther) this.toggle();
    else if (event.key.length === 1 && number >= 0) this.select(number);
    else return;
    event.preventDefault();
  }

  setBlind(isBlind) {
    this.isBlind = isBlind;
    this.isRevealed = false;
    this.selected = 0;
    this.ballot.replaceChildren();
    this.tally.replaceChildren();
    this.status.textContent = isBlind ? texts.listen : "";
    if (isBlind) {
      this.orderSeed = crypto.getRandomValues(new Uint32Array(1))[0];
      this.pair = shuffled(this.pieces, this.orderSeed).slice(0, 2);
      const choices = {a: say("better", {name: "A"}), none: texts.same, b: say("better", {name: "B"})};
      for (const [vote, text] of Object.entries(choices)) this.ballot.append(this.button("choice", text, () => this.cast(vote)));
    }
    this.show();
    this.select(0);
  }

  async cast(vote) {
    const [a, b] = this.pair.map(({file, adapter}) => ({file, adapter}));
    const {prompt, seed, variation} = this.comparison, url = this.getAttribute("votes") ?? TAKES_VOTES;
    const line = {time: new Date().toISOString(), prompt, seed, variation, order_seed: this.orderSeed, a, b, vote};
    for (const button of this.ballot.children) button.disabled = true;
    try {
      if (url) this.showTally(await this.send(url, line));
      else {
        storeVote(line);
        this.showSaving();
      }
    } catch (error) {
      this.status.textContent = say("lost", {reason: error.message});
      for (const button of this.ballot.children) button.disabled = false;
      return;
    }
    this.isRevealed = true;
    this.status.textContent = say("were", {a: this.pair[0].label, b: this.pair[1].label});
    const again = this.button("choice", texts.again, () => this.setBlind(true));
    this.ballot.replaceChildren(again);
    this.show();
    again.focus();
  }

  async send(url, line) {
    const answer = await fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(line)});
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status}`);
    return answer.json();
  }

  showTally(pairs) {
    this.tally.replaceChildren(...pairs.map(({title, counts, sentence}) => {
      const pair = make("p", "");
      pair.append(make("strong", "", title), make("span", "", counts), make("span", "", sentence));
      return pair;
    }));
  }

  // The votes of all pages of this site that this browser has.
  showSaving() {
    const votes = storedVotes(), lines = votes.map(vote => `${JSON.stringify(vote)}\n`).join("");
    const link = make("a", "", say("save", {number: votes.length}), {download: "votes.jsonl"});
    link.href = `data:application/jsonl;charset=utf-8,${encodeURIComponent(lines)}`;
    this.tally.replaceChildren(link);
  }
}

document.addEventListener("play", event => {
  if (event.target instanceof HTMLAudioElement) for (const player of document.querySelectorAll("compare-player")) player.stop();
}, true);
document.addEventListener("keydown", event => {
  if (document.activeElement === document.body && active?.isConnected) active.press(event);
});
customElements.define("compare-player", ComparePlayer);
})();
