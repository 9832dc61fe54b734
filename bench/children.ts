/** Talk with the processes that a benchmark measures: one command, one answer. */
import type { ChildProcess } from "node:child_process";

/** The next message of a child. Rejects if it ends before. */
export function answerOf<Answer>(child: ChildProcess): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const ended = () => reject(new Error(`process ${child.pid} ended`));
    child.once("exit", ended);
    child.once("message", (answer: Answer) => {
      child.off("exit", ended);
      resolve(answer);
    });
  });
}

export function ask<Answer>(child: ChildProcess, command: object): Promise<Answer> {
  const answer = answerOf<Answer>(child);
  child.send(command);
  return answer;
}

/** The child's side: answers each command, and ends if one fails or the parent is gone. */
export function serve<Command, Answer extends object>(obey: (command: Command) => Promise<Answer>): void {
  process.on("message", (command: Command) => {
    obey(command).then(
      (answer) => process.send!(answer),
      (error) => {
        console.error(error);
        process.exit(1);
      },
    );
  });
  process.on("disconnect", () => process.exit());
}
