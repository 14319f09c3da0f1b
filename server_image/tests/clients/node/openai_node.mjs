// Runs the cases of OpenAI's client for Node.

import { createReadStream } from "node:fs";
import OpenAI from "openai";
import {
  CITY, KEY, MODEL, QUESTION, RECORDING, SERVER, TITLES, WEATHER_QUESTION, all, refusal, run,
} from "./cases.mjs";

const client = new OpenAI({ baseURL: `${SERVER}/v1`, apiKey: KEY, maxRetries: 0 });
const chat = {
  model: MODEL,
  messages: [{ role: "user", content: QUESTION }],
  temperature: 0,
  max_tokens: 12,
};
const tools = {
  ...chat,
  messages: [{ role: "user", content: WEATHER_QUESTION }],
  max_tokens: 64,
  tools: [{ type: "function", function: { name: "get_weather", strict: true, parameters: CITY } }],
};
const response = { model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 12 };
const heard = () => ({
  model: MODEL,
  file: createReadStream(RECORDING),
  language: "en",
  temperature: 0,
});

await run({
  text: {
    "models, list": async () => (await client.models.list()).data,
    "models, retrieve": () => client.models.retrieve(MODEL),
    chat: () => client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 }),
    "chat, streamed": async () =>
      all(
        await client.chat.completions.create({
          ...chat,
          stream: true,
          stream_options: { include_usage: true },
        }),
      ),
    "chat, the helper for streams": () => client.chat.completions.stream(chat).finalChatCompletion(),
    "chat, JSON schema": () =>
      client.chat.completions.parse({
        ...chat,
        max_tokens: 24,
        response_format: {
          type: "json_schema",
          json_schema: { name: "city", schema: CITY, strict: true },
        },
      }),
    "tools, required": () =>
      client.chat.completions.create({ ...tools, tool_choice: "required" }),
    "tools, by name, streamed": async () =>
      all(
        await client.chat.completions.create({
          ...tools,
          tool_choice: { type: "function", function: { name: "get_weather" } },
          stream: true,
        }),
      ),
    completions: () =>
      client.completions.create({ model: MODEL, prompt: "The sea", max_tokens: 8, temperature: 0 }),
    responses: () => client.responses.create(response),
    "responses, streamed": async () =>
      all(await client.responses.create({ ...response, stream: true })),
    "refusal, unknown model": () =>
      refusal(() => client.chat.completions.create({ ...chat, model: "other" })),
    "refusal, wrong value": () =>
      refusal(() => client.chat.completions.create({ ...chat, temperature: -1 })),
    "refusal, wrong key": () => refusal(() => client.withOptions({ apiKey: "b" }).models.list()),
  },
  vectors: {
    embeddings: () => client.embeddings.create({ model: MODEL, input: TITLES }),
    "embeddings, as floats": () =>
      client.embeddings.create({ model: MODEL, input: TITLES, encoding_format: "float" }),
  },
  hearing: {
    "audio, transcription": () => client.audio.transcriptions.create(heard()),
    "audio, transcription, streamed": async () =>
      all(await client.audio.transcriptions.create({ ...heard(), stream: true })),
    "audio, translation": () => client.audio.translations.create(heard()),
  },
});
