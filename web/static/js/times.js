// <time> elements carry UTC; people read their own clock.
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Rewrites every <time datetime> below the root in local time; the full UTC moment stays in the title. */
export function localiseTimes(root) {
  const today = new Date().toDateString();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.title = moment.toISOString();
    element.textContent = (moment.toDateString() === today ? clock : day).format(moment);
  }
}
