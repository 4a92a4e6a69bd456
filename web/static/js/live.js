// A region of the page that the server renders anew; at most one request and one update a second.
import { morph } from "./morph.js";
import { localiseTimes } from "./times.js";

const PERIOD_MS = 1000;

export class LiveRegion {
  #element;
  #url;
  #onUpdate;
  #wanted = false;
  #busy = false;
  #last = 0;

  /** `element` is replaced in place by what `url` answers; `onUpdate` is called after each change. */
  constructor(element, url, onUpdate) {
    this.#element = element;
    this.#url = url;
    this.#onUpdate = onUpdate;
  }

  /** Asks for an update soon; many calls in one second make one. */
  refresh() {
    this.#wanted = true;
    if (!this.#busy) this.#run();
  }

  async #run() {
    this.#busy = true;
    while (this.#wanted) {
      const wait = this.#last + PERIOD_MS - performance.now();
      if (this.#last && wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      this.#wanted = false;
      this.#last = performance.now();
      await this.#update();
    }
    this.#busy = false;
  }

  async #update() {
    let response;
    try {
      response = await fetch(this.#url, { headers: { Accept: "text/html" } });
    } catch {
      return; // the server is away: the badge says so, and the stream asks again when it is back
    }
    if (response.status === 401) return location.reload(); // the session has ended: the server leads to /login
    if (!response.ok) return;
    const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
    const next = parsed.getElementById(this.#element.id);
    if (!next) return;
    localiseTimes(next);
    morph(this.#element, document.adoptNode(next));
    this.#onUpdate();
  }
}
