// The comparisons of samples that differ in their adapters alone.
import {ask, find, texts} from "./form.js";

const shown = new Map(); // sections by their content; one that plays stays

export async function showComparisons() {
  const comparisons = await ask("api/comparisons");
  const contents = new Map(comparisons.map(comparison => [JSON.stringify(comparison), comparison]));
  for (const [content, section] of shown) {
    if (contents.has(content)) continue;
    section.remove();
    shown.delete(content);
  }
  for (const [content, comparison] of [...contents].reverse()) { // the newest first
    if (shown.has(content)) continue;
    const section = document.createElement("section"), title = document.createElement("h3");
    section.className = "card";
    title.dir = "auto";
    title.textContent = comparison.prompt || texts.no_prompt;
    const player = document.createElement("compare-player");
    player.dataset.comparison = content;
    player.setAttribute("votes", "api/votes");
    section.append(title, player);
    shown.set(content, section);
    find("comparisons").prepend(section);
  }
}
