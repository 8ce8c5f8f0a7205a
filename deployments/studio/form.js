// The form: its values as the server takes them, and a sample's settings put into it.
export const texts = JSON.parse(document.body.dataset.texts);
export const find = id => document.getElementById(id);

// A text with its values in place of {name}.
export function say(name, values = {}) {
  return texts[name].replace(/\{(\w+)\}/g, (whole, key) => key in values ? String(values[key]) : whole);
}

export function show(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

export const rounded = (number, digits = 1) => Number(Number(number).toFixed(digits));

// Asks the server; an error has the text to show.
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(texts.unreachable);
  }
  if (answer.status === 401) location.reload(); // asks for the password
  const body = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(body.error ?? `HTTP ${answer.status}`);
  return body;
}

export const send = (path, value) => ask(path, {
  method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(value),
});

let source = null; // {name, until} of the recording to continue

const number = id => find(id).value === "" ? null : Number(find(id).value);

export function wish() {
  const strengths = {};
  for (const row of document.querySelectorAll(".adapter")) {
    const strength = Number(row.querySelector("input[type=number]").value);
    if (strength !== 0) strengths[row.dataset.id] = strength;
  }
  return {
    prompt: find("prompt").value.trim(),
    negative_prompt: find("negative_prompt").value.trim() || null,
    duration: number("duration"),
    tempo: number("tempo"),
    key: find("key").value.trim() || null,
    seed: number("seed"),
    variations: number("variations"),
    compare: find("compare").checked,
    loop: find("loop").checked,
    guidance: number("guidance"),
    temperature: number("temperature"),
    top_k: number("top_k"),
    strengths,
    source: source?.name ?? "",
    until: source?.until ?? null,
  };
}

export function continueFrom(name, until, label = name) {
  source = name ? {name, until} : null;
  find("source").hidden = !source;
  if (source) find("source-text").textContent = say("continues", {name: label, seconds: rounded(until)});
}

// Puts a sample's settings into the form.
export function reuse(piece, withSeed) {
  find("prompt").value = piece.prompt;
  find("negative_prompt").value = piece.negative_prompt;
  find("tempo").value = piece.tempo ?? "";
  find("key").value = piece.key;
  find("seed").value = withSeed ? piece.seed ?? "" : "";
  for (const name of ["guidance", "temperature", "top_k"]) {
    if (piece.sampling[name] !== null) find(name).value = piece.sampling[name];
  }
  for (const row of document.querySelectorAll(".adapter")) {
    const used = piece.adapters.find(one => isOf(one.path, row.dataset.source));
    setStrength(row, used?.strength ?? 0);
  }
}

// Whether an adapter's file is the given one, or lies in the given run.
const isOf = (path, given) => path === given || path.startsWith(given.replace(/\/*$/, "/"));

function setStrength(row, strength) {
  for (const input of row.querySelectorAll("input")) input.value = strength;
}

export async function showAdapters() {
  const offered = await ask("api/adapters");
  const rows = new Map([...document.querySelectorAll(".adapter")].map(row => [row.dataset.id, row]));
  find("adapters").hidden = offered.length === 0;
  for (const adapter of offered) {
    if (rows.has(adapter.id)) continue;
    const row = find("adapter-template").content.firstElementChild.cloneNode(true);
    row.dataset.id = adapter.id;
    row.dataset.source = adapter.source;
    const [slider, exact] = row.querySelectorAll("input");
    slider.id = `strength-${adapter.id}`;
    row.querySelector("label").htmlFor = slider.id;
    row.querySelector(".name").textContent = adapter.name;
    const loss = adapter.validation_loss;
    row.querySelector(".quiet").textContent = loss === null ? "" : say("loss", {loss: loss.toFixed(3)});
    exact.ariaLabel = say("strength", {name: adapter.name});
    setStrength(row, adapter.strength);
    slider.addEventListener("input", () => { exact.value = slider.value; });
    exact.addEventListener("input", () => { slider.value = exact.value; });
    find("adapters").append(row);
  }
}

async function upload() {
  const [file] = find("upload").files;
  if (!file) return;
  show(find("problem"), "");
  find("source").hidden = false;
  find("source-text").textContent = texts.uploading;
  try {
    const kept = await ask("api/uploads", {method: "POST", body: file});
    continueFrom(kept.source, kept.seconds, file.name);
  } catch (error) {
    continueFrom("");
    show(find("problem"), error.message);
  }
  find("upload").value = "";
}

async function openFlow() {
  show(find("flow-problem"), "");
  find("flow-done").hidden = true;
  find("flow-prompts").value ||= find("prompt").value;
  find("flow").showModal();
  const {reason} = await ask("api/flow").catch(error => ({reason: error.message}));
  show(find("flow-problem"), reason);
  find("flow-start").disabled = Boolean(reason);
}

async function startFlow() {
  show(find("flow-problem"), "");
  const prompts = find("flow-prompts").value.split("\n").map(line => line.trim()).filter(Boolean);
  try {
    const {url} = await send("api/flow", {prompts, wish: wish()});
    const link = find("flow-link");
    link.textContent = texts.flow_started;
    if (/^https?:/.test(url)) link.href = url;
    find("flow-done").hidden = false;
  } catch (error) {
    show(find("flow-problem"), error.message);
  }
}

find("source-remove").addEventListener("click", () => continueFrom(""));
find("upload").addEventListener("change", upload);
find("flow-open").addEventListener("click", openFlow);
find("flow-start").addEventListener("click", startFlow);
find("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});
