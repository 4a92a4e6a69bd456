// Job events. Tabs of one browser share one EventSource: HTTP/1.1 allows six connections, a stream holds one for good.
const STREAM = "/api/v1/events";
const KINDS = ["state", "progress", "worker_lost", "note"];
const RETRY_MS = 3000;

/** Holds the stream, tells every listener, and comes back by itself with the last id that it saw. */
class Stream {
  constructor(after, onEvent, onStatus) {
    this.after = after;
    this.onEvent = onEvent;
    this.onStatus = onStatus;
    this.status = { state: "connecting", since: Date.now() };
    this.open();
  }

  open() {
    this.source = new EventSource(`${STREAM}?after=${this.after}`);
    this.source.onopen = () => this.#tell("live");
    this.source.onerror = () => {
      this.#tell("stale");
      // the browser reconnects after a broken line, but not after an HTTP error
      if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.open(), RETRY_MS);
    };
    for (const kind of KINDS) this.source.addEventListener(kind, (message) => this.#receive(message));
  }

  close() {
    this.source.close();
  }

  #receive(message) {
    const event = JSON.parse(message.data);
    this.after = Math.max(this.after, Number(message.lastEventId) || 0);
    this.onEvent({ id: event.id, kind: event.kind, job_id: event.job_id, study_id: event.study_id });
  }

  #tell(state) {
    if (this.status.state === state) return; // stale since the first failure, not since the latest
    this.status = { state, since: Date.now() };
    this.onStatus(this.status);
  }
}

/**
 * Calls onEvent for every job event after `after`, onStatus when the stream breaks or comes back, and onJoin when this
 * tab starts to listen to another tab's stream, which may already be ahead of what this page shows.
 */
export function followEvents({ after, onEvent, onJoin, onStatus }) {
  if (!navigator.locks || !window.BroadcastChannel) {
    // locks need a secure context: plain http from another machine gets a stream for each tab
    const own = new Stream(after, onEvent, onStatus);
    addEventListener("pagehide", () => own.close());
    addEventListener("pageshow", (shown) => shown.persisted && own.open());
    return;
  }
  const channel = new BroadcastChannel("bitbudget-events");
  let stream = null;
  let latest = after;
  const hear = (event) => {
    latest = Math.max(latest, event.id);
    onEvent(event);
  };
  channel.onmessage = ({ data }) => {
    if (data.ask && stream) channel.postMessage({ status: stream.status });
    if (data.event) hear(data.event);
    if (data.status) {
      onStatus(data.status);
      if (data.status.state === "live") onJoin();
    }
  };
  channel.postMessage({ ask: true });
  navigator.locks.request("bitbudget-events", () => {
    // from here on this tab holds the stream for all, until it is closed
    stream = new Stream(
      latest,
      (event) => {
        channel.postMessage({ event });
        hear(event);
      },
      (status) => {
        channel.postMessage({ status });
        onStatus(status);
      },
    );
    return new Promise(() => {});
  });
}
