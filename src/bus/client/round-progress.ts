/** How far the rounds of a registration are, as its client sees them: asked of the agent, while somebody wants to know. */
import { catchError, defer, EMPTY, exhaustMap, type Observable, of, startWith, switchMap, timer } from "rxjs";
import type { RoundProgress } from "../../transport/transport.ts";
import type { RoundEvent } from "./round-events.ts";

/** Milliseconds between two questions. */
const askMs = 100;

/**
 * Asks for the progress of a round from its `queued` on, and ends it with what was moved; `last` is the event that came last,
 * for those who subscribe in the middle of a round. Answers that do not come are left out.
 */
export function followRounds(
  events$: Observable<RoundEvent>,
  last: () => RoundEvent | undefined,
  ask: () => Promise<RoundProgress | undefined>,
): Observable<RoundProgress> {
  const asked$ = defer(ask).pipe(
    switchMap((progress) => (progress === undefined ? EMPTY : of(progress))),
    catchError(() => EMPTY),
  );
  const progressOf = (event: RoundEvent): Observable<RoundProgress> => {
    if (event.kind === "queued") return timer(0, askMs).pipe(exhaustMap(() => asked$));
    if (event.kind !== "completed") return EMPTY;
    const { round, bytesSent, bytesReceived, bytesCopied } = event.result;
    const bytesTotal = bytesSent + bytesReceived + bytesCopied;
    return of({ round, bytesDone: bytesTotal, bytesTotal });
  };
  return defer(() => {
    const before = last();
    return before?.kind === "queued" ? events$.pipe(startWith(before)) : events$;
  }).pipe(switchMap(progressOf));
}
