// Runs the cases in a real browser, on a page of another site. The page has the key and calls the
// server.

import { createServer } from "node:http";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";
import { KEY, MODEL, QUESTION, SERVER, run } from "./cases.mjs";

const HOST = "a.page"; // its origin is in --allowed-origins
const site = createServer((_, response) => {
  response.setHeader("content-type", "text/html");
  response.end("<!doctype html><title>A page</title>");
});
await new Promise((listening) => site.listen(0, "127.0.0.1", listening));
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: [
    "--no-sandbox",
    // The browser resolves the name of the page's site to this machine. The default arguments of
    // the package are left out, because they would disable the checks that these cases need.
    `--host-resolver-rules=MAP ${HOST}:80 127.0.0.1:${site.address().port}`,
  ],
  headless: "shell",
});
const page = await browser.newPage();
await page.goto(`http://${HOST}/`);

/** Return the parts of the server's response that the page can read. */
const ask = (path, body, key = KEY) =>
  page.evaluate(
    async (url, sent, bearer) => {
      try {
        const answer = await fetch(url, {
          method: sent ? "POST" : "GET",
          headers: { authorization: `Bearer ${bearer}`, "content-type": "application/json" },
          ...(sent && { body: JSON.stringify(sent) }),
        });
        const text = await answer.text();
        const type = answer.headers.get("content-type");
        const parts = text
          .split("\n\n")
          .filter((part) => part.startsWith("data: {"))
          .map((part) => JSON.parse(part.slice(6)));
        return {
          status: answer.status,
          type,
          hasId: answer.headers.has("x-request-id"),
          body: type.startsWith("text/event-stream") ? { stream: parts } : JSON.parse(text),
        };
      } catch (error) {
        return { networkError: error.message };
      }
    },
    `${SERVER}${path}`,
    body,
    key,
  );
const chat = {
  model: MODEL,
  messages: [{ role: "user", content: QUESTION }],
  temperature: 0,
  max_tokens: 12,
};

try {
  await run({
    text: {
      "models, list": () => ask("/v1/models"),
      chat: () => ask("/v1/chat/completions", chat),
      "chat, streamed": () => ask("/v1/chat/completions", { ...chat, stream: true }),
      messages: () => ask("/v1/messages", chat),
      "refusal, wrong value": () => ask("/v1/chat/completions", { ...chat, temperature: -1 }),
      "refusal, wrong key": () => ask("/v1/chat/completions", chat, "b"),
      "refusal, unknown route": () => ask("/v1/unknown"),
    },
  });
} finally {
  await browser.close();
  site.close();
}
