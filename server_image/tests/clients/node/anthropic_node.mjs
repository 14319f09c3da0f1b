// Runs the cases of Anthropic's client for Node.

import Anthropic from "@anthropic-ai/sdk";
import { CITY, KEY, MODEL, QUESTION, SERVER, WEATHER_QUESTION, all, refusal, run } from "./cases.mjs";

// vLLM reads the key from the header `Authorization`, where the client writes its `authToken`.
const client = new Anthropic({ baseURL: SERVER, authToken: KEY, apiKey: null, maxRetries: 0 });
const message = {
  model: MODEL,
  messages: [{ role: "user", content: QUESTION }],
  max_tokens: 12,
  temperature: 0,
};
const tools = {
  ...message,
  messages: [{ role: "user", content: WEATHER_QUESTION }],
  max_tokens: 64,
  tools: [{ name: "get_weather", strict: true, input_schema: CITY }],
};

await run({
  text: {
    "models, list": async () => (await client.models.list()).data,
    "models, retrieve": () => client.models.retrieve(MODEL),
    messages: () => client.messages.create({ ...message, system: "You answer in one word." }),
    "messages, streamed": async () => all(await client.messages.create({ ...message, stream: true })),
    "messages, the helper for streams": () => client.messages.stream(message).finalMessage(),
    "messages, the id of a request": async () => {
      const { request_id: id } = await client.messages.create(message).withResponse();
      return Boolean(id);
    },
    "tools, any": () => client.messages.create({ ...tools, tool_choice: { type: "any" } }),
    "tools, by name, streamed": async () =>
      all(
        await client.messages.create({
          ...tools,
          tool_choice: { type: "tool", name: "get_weather" },
          stream: true,
        }),
      ),
    "count of tokens": () =>
      client.messages.countTokens({ model: MODEL, messages: message.messages }),
    "refusal, unknown model": () =>
      refusal(() => client.messages.create({ ...message, model: "other" })),
    "refusal, wrong value": () =>
      refusal(() => client.messages.create({ ...message, temperature: -1 })),
    "refusal, wrong key": () =>
      refusal(() => client.withOptions({ authToken: "b" }).messages.create(message)),
  },
});
