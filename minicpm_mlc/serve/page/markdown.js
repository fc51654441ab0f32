// Markdown as a model writes it, into elements. Text never becomes markup: every node is made here.

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|__(.+?)__|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/s;

/** An element with children, which are nodes or texts. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Nodes of one line's text. */
function inline(text) {
  const found = INLINE.exec(text);
  if (!found) return [text];
  const [whole, , code, bold, bold2, italic, label, link] = found;
  let made;
  if (code !== undefined) made = element("code", {}, code);
  else if (bold ?? bold2) made = element("strong", {}, ...inline(bold ?? bold2));
  else if (italic) made = element("em", {}, ...inline(italic));
  else made = element("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, label);
  return [text.slice(0, found.index), made, ...inline(text.slice(found.index + whole.length))];
}

function codeBlock(lines, language) {
  const text = lines.join("\n");
  const copy = element("button", { type: "button", "aria-label": "Copy code" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  });
  return element("pre", { "data-language": language }, copy, element("code", {}, text));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, kind) =>
    element("tr", {}, ...cells(line).map((cell) => element(kind, {}, ...inline(cell))));
  const [head, , ...rows] = lines;
  return element("table", {}, row(head, "th"), ...rows.map((line) => row(line, "td")));
}

const LIST = /^(\s*)([-*+]|\d+[.)])\s+(.*)$/;

function list(lines) {
  const [, indent, mark] = LIST.exec(lines[0]);
  const made = element(/\d/.test(mark) ? "ol" : "ul");
  let item = [];
  const close = () => {
    if (!item.length) return;
    const inner = item.slice(1).map((line) => line.slice(indent.length + 2));
    made.append(element("li", {}, ...inline(LIST.exec(item[0])[3]), ...blocks(inner)));
    item = [];
  };
  for (const line of lines) {
    const found = LIST.exec(line);
    if (found && found[1].length <= indent.length) close();
    item.push(line);
  }
  close();
  return made;
}

function take(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end], lines[end - 1])) end += 1;
  return end;
}

function blocks(lines) {
  const made = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = /^\s*(```+|~~~+)\s*(\S*)/.exec(line);
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    let end = at + 1;
    if (!line.trim()) {
      at = end;
      continue;
    } else if (fence) {
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      made.push(codeBlock(lines.slice(at + 1, end), fence[2]));
      end += 1;
    } else if (heading) {
      made.push(element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2])));
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      made.push(element("hr"));
    } else if (line.startsWith(">")) {
      end = take(lines, at, (next) => next.startsWith(">"));
      made.push(element("blockquote", {}, ...blocks(lines.slice(at, end).map((l) => l.replace(/^>\s?/, "")))));
    } else if (LIST.test(line)) {
      end = take(lines, at, (next) => LIST.test(next) || /^\s{2,}\S/.test(next));
      made.push(list(lines.slice(at, end)));
    } else if (line.includes("|") && /^[\s|:-]+-[\s|:-]*$/.test(lines[end] ?? "")) {
      end = take(lines, at, (next) => next.includes("|"));
      made.push(table(lines.slice(at, end)));
    } else {
      end = take(lines, at, (next) => next.trim() && !/^(\s*```|#{1,6}\s|>)/.test(next) && !LIST.test(next));
      made.push(element("p", {}, ...lines.slice(at, end).flatMap((l, i) => (i ? [element("br"), ...inline(l)] : inline(l)))));
    }
    at = end;
  }
  return made;
}

/** Nodes of a whole text. */
export function markdown(text) {
  return blocks(text.split("\n"));
}
