// An agent that Python calls as `await bus.agents.get("js-echo").say({"text": "hello"})`.
//
// node echo_agent.js [nats://127.0.0.1:4222]

import { connect } from "@nats-io/transport-node";

import { serve } from "./agent.js";
import { BusError } from "./frames.js";

const connection = await connect({ servers: process.argv[2] ?? "nats://127.0.0.1:4222" });
const agent = await serve(
  connection,
  "js-echo",
  {
    async say(message) {
      if (typeof message?.text !== "string") throw new BusError("bad_message", "Expected `str` - at `$.text`");
      return { text: message.text, language: "JavaScript" };
    },
  },
  { capabilities: ["echo"] },
);
console.log(`js-echo serves as ${agent.process}`);

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, async () => {
    await agent.stop();
    await connection.drain();
  });
}
