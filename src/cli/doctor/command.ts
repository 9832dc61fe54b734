import { Command } from "commander";
import type { CommandContext } from "../ui/context.ts";
import type { Output } from "../ui/output.ts";
import type { Check } from "./checks.ts";

const headings: readonly (readonly [Check["needed"], string])[] = [
  ["planning", "Planning"],
  ["transfers", "Transfers"],
  ["build", "Building the native library"],
  ["option", "Options"],
];

/** `tensorbus doctor`: what this machine has, what is missing, and how to get it. */
export function doctorCommand(context: CommandContext): Command {
  return new Command("doctor")
    .option("--json", "print one JSON object")
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus doctor
  $ tensorbus doctor --json | jq '.checks[] | select(.status != "ok")'

Exit code 3 if something is missing that planning or transfers need.`,
    )
    .action(async (options: { json?: boolean }) => {
      const { checkMachine } = await import("./checks.ts");
      const checks = await checkMachine(context.environment);
      const lacking = checks.filter(isLacking);
      if (options.json) {
        await context.stdout.line(JSON.stringify({ ok: lacking.length === 0, checks }));
      } else {
        await printChecks(context.stdout, checks, lacking);
      }
      if (lacking.length > 0) context.exit(3);
    });
}

/** What is built here needs its tools only while it is not built. */
function isLacking({ needed, status }: Check): boolean {
  return status === "missing" && (needed === "planning" || needed === "transfers");
}

async function printChecks(
  output: Output,
  checks: readonly Check[],
  lacking: readonly Check[],
): Promise<void> {
  const width = Math.max(...checks.map(({ name }) => name.length));
  for (const [needed, heading] of headings) {
    await output.line(output.colors.bold(heading));
    for (const check of checks.filter((entry) => entry.needed === needed)) {
      await output.line(`  ${mark(output, check)} ${check.name.padEnd(width)}  ${check.found}`);
      if (check.advice !== undefined)
        await output.line(`${" ".repeat(markWidth + width + 5)}${output.colors.dim(`-> ${check.advice}`)}`);
    }
    await output.line();
  }
  const names = lacking.map(({ name }) => name).join(", ");
  await output.line(lacking.length === 0 ? "This machine can plan and transfer." : `Missing: ${names}.`);
}

const markWidth = 7;

function mark({ colors }: Output, check: Check): string {
  if (check.status === "ok") return colors.green("ok".padEnd(markWidth));
  if (check.status === "warning") return colors.yellow("limited".padEnd(markWidth));
  return isLacking(check) ? colors.red("MISSING".padEnd(markWidth)) : colors.dim("none".padEnd(markWidth));
}
