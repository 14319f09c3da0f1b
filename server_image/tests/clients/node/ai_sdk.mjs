// Runs the cases of Vercel's AI SDK, with its provider for servers that have OpenAI's API.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { CITY, KEY, MODEL, QUESTION, SERVER, TITLES, WEATHER_QUESTION, all, run } from "./cases.mjs";

const provider = createOpenAICompatible({
  name: "vllm",
  baseURL: `${SERVER}/v1`,
  apiKey: KEY,
  includeUsage: true,
});
const asked = { model: provider(MODEL), temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
const tools = {
  get_weather: tool({ description: "Weather of a city", inputSchema: jsonSchema(CITY) }),
};

/** Return the parts of a result that a caller sees. */
const seen = ({ text, toolCalls, finishReason, usage, warnings, response }) => ({
  text, toolCalls, finishReason, usage, warnings, body: response?.body,
});

await run({
  text: {
    generateText: async () => seen(await generateText({ ...asked, prompt: QUESTION })),
    streamText: async () => {
      const result = streamText({ ...asked, prompt: QUESTION });
      const parts = await all(result.textStream);
      return {
        text: parts.stream.join(""),
        finishReason: await result.finishReason,
        usage: await result.usage,
      };
    },
    "generateText, tools": async () =>
      seen(
        await generateText({
          ...asked,
          prompt: WEATHER_QUESTION,
          maxOutputTokens: 64,
          tools,
          toolChoice: "required",
        }),
      ),
    "streamText, tools": async () => {
      const result = streamText({
        ...asked,
        prompt: WEATHER_QUESTION,
        maxOutputTokens: 64,
        tools,
        toolChoice: { type: "tool", toolName: "get_weather" },
      });
      return { toolCalls: await result.toolCalls, finishReason: await result.finishReason };
    },
    "generateText, refusal of an unknown model": async () => {
      try {
        await generateText({ ...asked, model: provider("other"), prompt: QUESTION });
      } catch (error) {
        if (!APICallError.isInstance(error)) throw error;
        const { statusCode, message, isRetryable, responseBody } = error;
        return { statusCode, message, isRetryable, body: JSON.parse(responseBody) };
      }
      throw new Error("it is not refused");
    },
  },
  vectors: {
    embedMany: async () => {
      const model = provider.embeddingModel(MODEL);
      const { embeddings, usage } = await embedMany({ model, values: TITLES, maxRetries: 0 });
      return { embeddings, usage };
    },
  },
});
