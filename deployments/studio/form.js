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
let carried = {}; // values of the sample whose settings are used that have no field here

const number = id => find(id).value === "" ? null : Number(find(id).value);

export function formValues() {
  const strengths = {};
  for (const row of document.querySelectorAll(".adapter")) {
    const strength = Number(row.querySelector("input[type=number]").value);
    if (strength !== 0) strengths[row.dataset.id] = strength;
  }
  return {
    ...carried,
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
  find("loop").disabled = Boolean(source); // a loop continues nothing
  if (source) find("loop").checked = false;
  const {redo, ...others} = carried; // a part of the recording that was continued before
  carry(redo ? others : carried);
}

function carry(values) {
  carried = values;
  const shown = Object.entries(values).map(([name, value]) => `${name}: ${[value].flat().join(", ")}`);
  find("carried").hidden = !shown.length;
  find("carried-text").textContent = say("carried", {values: shown.join(" · ")});
}

const FIELDS = ["prompt", "negative_prompt", "tempo", "key", "seed", "variations", "guidance", "temperature", "top_k"];

// Puts a sample's settings into the form; without its source, length and recording to continue stay as they are.
export async function reuse(stem, withSource) {
  const {values, source_seconds: seconds} = await ask(`api/pieces/${stem}/form?with_source=${withSource}`);
  const {strengths = {}, source: name = "", duration, loop = false, ...others} = values;
  for (const id of FIELDS) {
    find(id).value = others[id] ?? find(id).defaultValue;
    delete others[id];
  }
  for (const row of document.querySelectorAll(".adapter")) setStrength(row, strengths[row.dataset.id] ?? 0);
  find("compare").checked = false;
  if (withSource) {
    continueFrom(name, seconds);
    find("duration").value = duration ?? find("duration").defaultValue;
    find("loop").checked = loop;
  }
  carry(others);
}

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
  if (file.size > Number(find("upload").dataset.most)) {
    show(find("problem"), texts.too_large);
    find("upload").value = "";
    return;
  }
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
    const {url} = await send("api/flow", {prompts, form: formValues()});
    const link = find("flow-link");
    link.textContent = texts.flow_started;
    if (/^https?:/.test(url)) link.href = url;
    find("flow-done").hidden = false;
  } catch (error) {
    show(find("flow-problem"), error.message);
  }
}

find("source-remove").addEventListener("click", () => continueFrom(""));
find("carried-remove").addEventListener("click", () => carry({}));
find("upload").addEventListener("change", upload);
find("flow-open").addEventListener("click", openFlow);
find("flow-start").addEventListener("click", startFlow);
find("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});
