// Turns one element into another in place: focus, scroll position and open <details> survive.

/** What belongs to the person at the screen and not to the server. */
const KEPT_ATTRIBUTES = new Set(["open"]);

function syncAttributes(from, to) {
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !KEPT_ATTRIBUTES.has(name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value && !KEPT_ATTRIBUTES.has(name)) from.setAttribute(name, value);
  }
}

function matches(from, to) {
  return from && from.nodeType === to.nodeType && from.nodeName === to.nodeName && (from.id ?? "") === (to.id ?? "");
}

function syncChildren(from, to) {
  const byId = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let cursor = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const known = wanted.id && byId.get(wanted.id);
    if (known && known !== cursor) from.insertBefore(known, cursor);
    const present = known || cursor;
    if (matches(present, wanted)) {
      morph(present, wanted);
      cursor = present.nextSibling;
    } else {
      from.insertBefore(wanted, cursor);
    }
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

/** Makes `from` equal to `to`, touching only what differs. */
export function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== Node.ELEMENT_NODE) {
    from.nodeValue = to.nodeValue;
    return;
  }
  syncAttributes(from, to);
  syncChildren(from, to);
}
