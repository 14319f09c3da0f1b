// Runs the cases of one client, and prints the outcome of each case as a line of JSON.
//
// The environment variables NEEDS, URL, KEY and RECORDING come from the command that compares
// servers.

export const { NEEDS, URL: SERVER, KEY, RECORDING } = process.env;
export const MODEL = "model";
export const QUESTION = "What is the capital of France?";
export const WEATHER_QUESTION = "How is the weather in Paris?";
export const TITLES = ["the sea", "a mountain", "a ship on the sea"];
/** Arguments of the tool `get_weather`. */
export const CITY = {
  type: "object",
  properties: { city: { type: "string", maxLength: 12 } },
  required: ["city"],
  additionalProperties: false,
};

/** Return the error that a client throws for a refused request. */
export async function refusal(asked) {
  let answer;
  try {
    answer = await asked();
  } catch (error) {
    const { status, message } = error;
    return { error: error.constructor.name, status, message, body: error.error };
  }
  throw new Error(`it is not refused: ${JSON.stringify(answer)}`);
}

/** Return all parts of a stream. */
export async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return { stream: parts };
}

/**
 * Run the cases for the present kind of model. `cases` contains them by kind of model and feature.
 * A failed case does not stop the others.
 */
export async function run(cases) {
  for (const [feature, ask] of Object.entries(cases[NEEDS])) {
    let outcome;
    try {
      outcome = { reply: await ask() };
    } catch (error) {
      outcome = { failure: `${error.constructor.name}: ${error.message}` };
    }
    process.stdout.write(`${JSON.stringify({ feature, ...outcome })}\n`);
  }
}
