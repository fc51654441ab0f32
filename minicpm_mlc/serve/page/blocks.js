// Which blocks of the text an answer of the sparse gear read, as `minicpm-mlc trace` shows it.

import { element } from "./markdown.js";

const MOST = 5; // blocks that are named

/** A folded map. `reads`: how often each block was chosen by its score; some are read anyway. */
export function blockMap(map) {
  const { reads, tokens, first, latest, texts = [] } = map;
  const most = Math.max(1, ...reads);
  const always = (at) => at < first || at >= reads.length - latest;
  const cells = reads.map((count, at) => {
    const cell = element("i", { title: `${where(at, tokens)}: ${texts[at] ?? ""}` });
    if (always(at)) cell.setAttribute("class", "always");
    else cell.style.setProperty("--share", count / most);
    return cell;
  });
  const chosen = reads.filter((count) => count).length;
  const top = reads
    .map((count, at) => [count, at])
    .filter(([count, at]) => count && !always(at))
    .sort(([a], [b]) => b - a)
    .slice(0, MOST);
  return element(
    "details",
    { class: "blocks" },
    element("summary", {}, `Blocks read: ${chosen} of ${reads.length} chosen by score`),
    element("div", { class: "map", "aria-hidden": "true" }, ...cells),
    element(
      "p",
      {},
      `A cell is ${tokens} tokens, the darker the more often it was chosen; outlined ones are always read.`,
    ),
    top.length ? element("ol", {}, ...top.map(([, at]) => named(at, tokens, texts[at]))) : "",
  );
}

function where(at, tokens) {
  return `tokens ${at * tokens} to ${(at + 1) * tokens - 1}`;
}

function named(at, tokens, text) {
  return element("li", {}, text ? `${where(at, tokens)}: ${text}` : where(at, tokens));
}
