import { type Command, InvalidArgumentError, Option } from "commander";
import { type DType, dtypes } from "../../layout/index.ts";
import { type ModelForm, modelForms } from "../../model/families/table.ts";

/** What a command line says of a model. */
export interface ModelOptions {
  readonly model?: string;
  readonly dtype?: DType;
  readonly form?: ModelForm;
  readonly mtp?: boolean;
  /** `false` by `--no-quantized`; commander makes it true otherwise. */
  readonly quantized?: boolean;
}

/** Adds the options of a model. Only `--model` can be `required`: by a command that takes no spec in its place. */
export function addModelOptions(command: Command, required: boolean): Command {
  const model = new Option("--model <path>", "a Hugging Face config.json, or a folder with one");
  if (required) model.makeOptionMandatory();
  return command
    .addOption(model)
    .addOption(
      new Option("--form <form>", "names and shapes as published, or as transformers 5 holds them").choices(
        modelForms,
      ),
    )
    .option("--dtype <type>", "the element type, in place of the config's", parseDType)
    .option("--mtp", "with the layers that predict further tokens")
    .option("--no-quantized", "plain weights, whatever the config's quantization_config says");
}

function parseDType(text: string): DType {
  if ((dtypes as readonly string[]).includes(text)) return text as DType;
  throw new InvalidArgumentError(`It must be one of ${dtypes.join(", ")}.`);
}
