// The page: the state of the studio, the queue, and the list of what was made.
import {ask, continueFrom, find, formValues, reuse, rounded, say, send, show, showAdapters, texts} from "./form.js";
import {showComparisons} from "./compare.js";
import {LiveSound} from "./live.js";

const BUSY_MS = 250, QUIET_MS = 3000;
const REDONE_SECONDS = 4; // at first, and at most half of the sample
const cards = new Map(); // of jobs, by id
const shownPieces = new Map(); // articles by stem
let context = null; // of sound; a click starts it
let live = null; // {sound, card}
let redone = null; // the sample of which a part is made again
let known = ""; // the version of the folder that is shown, to notice new samples of any program
let timer = 0;

async function make(values) {
  show(find("problem"), "");
  try {
    context ??= new AudioContext();
    context.resume();
    const {id} = await send("api/jobs", values);
    await refresh();
    const card = cards.get(id);
    if (card && !live) listen(id, card); // else it would play over the one that is heard
    card?.scrollIntoView({behavior: "smooth", block: "nearest"});
  } catch (error) {
    show(find("problem"), error.message);
  }
}

function listen(id, card) {
  stopLive();
  pauseOthers(null);
  const button = card.querySelector(".listen");
  button.ariaPressed = "true";
  const ended = () => {
    if (live?.sound === sound) stopLive();
    removeEnded();
  };
  context ??= new AudioContext();
  context.resume();
  const sound = new LiveSound(context, `api/jobs/${id}/sound`, seconds => { card.dataset.heard = seconds; }, ended);
  live = {sound, card};
}

function stopLive() {
  live?.sound.stop();
  live?.card.querySelector(".listen").setAttribute("aria-pressed", "false");
  live = null;
}

function pauseOthers(kept) {
  for (const audio of document.querySelectorAll("audio")) if (audio !== kept) audio.pause();
}

async function refresh() {
  clearTimeout(timer);
  let isBusy = true;
  try {
    const state = await ask("api/state");
    showStatus(state);
    isBusy = !state.is_ready || state.jobs.some(isActive);
    for (const job of state.jobs) showJob(job);
    if (state.music !== known) {
      await showPieces();
      known = state.music;
    }
    if (state.is_ready && !find("form").dataset.ready) {
      find("form").dataset.ready = "yes";
      if (state.guidance !== null) find("guidance").placeholder = state.guidance;
      await showAdapters();
    }
  } catch (error) {
    showStatus({failure: error.message});
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, isBusy ? BUSY_MS : QUIET_MS);
}

function showStatus({is_ready, stage, failure, model, device}) {
  const status = find("status");
  status.className = failure ? "broken" : is_ready ? "ready" : "";
  const text = failure || stage || say("ready", {model, device});
  if (find("status-text").textContent !== text) find("status-text").textContent = text;
}

const isActive = job => job.state === "waiting" || job.state === "making";

function showJob(job) {
  let card = cards.get(job.id);
  if (!card) {
    if (!isActive(job)) return; // ended before this page was opened: its samples are in the list
    card = find("job-template").content.firstElementChild.cloneNode(true);
    card.querySelector("h3").textContent = job.title || texts.no_prompt;
    card.querySelector(".listen").addEventListener("click", event => {
      if (event.currentTarget.ariaPressed === "true") stopLive();
      else listen(job.id, card);
      removeEnded();
    });
    card.querySelector(".cancel").addEventListener("click", () => {
      if (card.dataset.state === "failed" || card.dataset.state === "cancelled") removeCard(job.id, card);
      else ask(`api/jobs/${job.id}`, {method: "DELETE"}).then(refresh, error => show(find("problem"), error.message));
    });
    cards.set(job.id, card);
    find("jobs").append(card);
  }
  card.dataset.state = job.state;
  const share = job.total ? job.done / job.total : 0;
  card.querySelector("progress").value = job.state === "done" ? 1 : share;
  card.querySelector(".cancel").hidden = job.state === "done";
  const text = card.querySelector("[role=status]");
  const line = jobLine(job, share);
  if (text.textContent !== line) text.textContent = line;
  if (job.state === "failed") card.querySelector("[role=status]").classList.add("error");
  if (job.state === "failed" || job.state === "cancelled") card.querySelector(".listen").hidden = true;
  if (job.state === "done" || job.state === "cancelled") removeEnded();
}

function jobLine(job, share) {
  if (job.state === "waiting") return job.place ? say("before", {number: job.place}) : texts.next;
  if (job.state === "failed") return say("failed", {reason: job.error});
  if (job.state === "cancelled") return texts.cancelled;
  if (job.state === "done" || share >= 1) return texts.finishing;
  return say("making", {done: rounded(share * job.seconds).toFixed(1), total: rounded(job.seconds)});
}

// A finished job's card stays while it is heard.
function removeEnded() {
  for (const [id, card] of cards) {
    const isOver = card.dataset.state === "done" || card.dataset.state === "cancelled";
    if (isOver && live?.card !== card) removeCard(id, card);
  }
}

function removeCard(id, card) {
  card.remove();
  cards.delete(id);
}

async function showPieces() {
  const pieces = await ask("api/pieces");
  find("empty").hidden = pieces.length > 0;
  find("all").hidden = pieces.length === 0;
  let before = find("empty");
  for (const piece of pieces) {
    const content = JSON.stringify(piece);
    let article = shownPieces.get(piece.stem);
    if (article?.dataset.content !== content) {
      const made = article_of(piece);
      made.dataset.content = content;
      article?.remove();
      shownPieces.set(piece.stem, made);
      article = made;
    }
    if (before.nextElementSibling !== article) before.after(article); // a player that plays stays in its place
    before = article;
  }
  const stems = new Set(pieces.map(piece => piece.stem));
  for (const [stem, article] of shownPieces) {
    if (stems.has(stem)) continue;
    article.remove();
    shownPieces.delete(stem);
  }
  await showComparisons();
}

function article_of(piece) {
  const article = find("piece-template").content.firstElementChild.cloneNode(true);
  article.dataset.stem = piece.stem;
  const [title, facts, picture, audio] = ["h3", ".facts", ".picture", "audio"].map(name => article.querySelector(name));
  title.id = `title-${piece.stem}`;
  title.textContent = piece.prompt.trim() || texts.no_prompt;
  facts.textContent = factsOf(piece).join(" · ");
  audio.src = `files/${piece.stem}.wav`;
  audio.setAttribute("aria-labelledby", title.id);
  if (piece.files.includes("png")) {
    picture.href = `files/${piece.stem}.png`;
    picture.firstElementChild.src = picture.href;
    picture.firstElementChild.alt = say("spectrogram", {name: piece.stem});
  } else {
    picture.remove();
  }
  for (const ending of piece.files.filter(one => one !== "png")) {
    const link = document.createElement("a");
    link.href = `files/${piece.stem}.${ending}`;
    link.download = `${piece.stem}.${ending}`;
    link.textContent = ending.toUpperCase();
    const item = document.createElement("li");
    item.append(link);
    article.querySelector(".links").append(item);
  }
  const on = (name, action) => {
    const button = article.querySelector(name);
    button.setAttribute("aria-describedby", title.id);
    button.addEventListener("click", action);
  };
  on(".vary", () => withSettings(piece, true, () => {
    find("seed").value = "";
    find("variations").value = 1;
    make(formValues());
  }));
  on(".continue", () => {
    const at = audio.currentTime;
    audio.pause();
    withSettings(piece, false, () => { find("seed").value = ""; }).finally(() => {
      continueFrom(piece.stem, at > 0.1 && at < piece.seconds - 0.05 ? at : piece.seconds);
      toForm();
    });
  });
  on(".redo", () => {
    redone = piece;
    const at = Math.min(audio.currentTime, piece.seconds / 2), length = Math.min(REDONE_SECONDS, piece.seconds / 2);
    find("redo-begin").max = find("redo-end").max = piece.seconds;
    find("redo-begin").value = tenths(at);
    find("redo-end").value = tenths(at + length);
    audio.pause();
    find("redo").showModal();
  });
  on(".reuse", () => withSettings(piece, true, toForm));
  return article;
}

// Rounded down, so that it lies within the sample.
const tenths = seconds => Math.floor(seconds * 10 + 1e-6) / 10;

async function withSettings(piece, withSource, next) {
  show(find("problem"), "");
  try {
    await reuse(piece.stem, withSource);
    next();
  } catch (error) {
    show(find("problem"), error.message);
  }
}

// Makes a part of a sample again, with its own settings.
function redo(event) {
  event.preventDefault();
  find("redo").close();
  const part = `${find("redo-begin").value}-${find("redo-end").value}`;
  withSettings(redone, false, () => {
    const made = {source: redone.stem, until: null, redo: part, loop: false, compare: false, variations: 1, best_of: null};
    make({...formValues(), seed: null, ...made});
  });
}

function factsOf(piece) {
  const adapters = piece.adapters.map(one => `${one.name} × ${rounded(one.strength, 3)}`);
  const parts = [piece.stem, adapters.join(" + ") || texts.base, say("seconds", {seconds: rounded(piece.seconds)})];
  if (piece.seed !== null) parts.push(say("seed", {seed: piece.seed}));
  if (piece.is_continued) parts.push(texts.continued);
  return parts;
}

function toForm() {
  find("form").scrollIntoView({behavior: "smooth", block: "nearest"});
  find("prompt").focus({preventScroll: true});
}

find("form").addEventListener("submit", event => {
  event.preventDefault();
  make(formValues());
});
find("redo-form").addEventListener("submit", redo);
find("redo-close").addEventListener("click", () => find("redo").close());
document.addEventListener("play", event => {
  stopLive();
  removeEnded();
  pauseOthers(event.target); // one at a time: who starts a sample wants to hear that one
}, true);
refresh();
