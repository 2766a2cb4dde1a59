// A caller: a worker's echo, a reply and a stream of an agent, and what discovery tells.
//
// node ask.js [nats://127.0.0.1:4222] [agent handler message-as-JSON [stream]]

import { Svcm } from "@nats-io/services";
import { connect } from "@nats-io/transport-node";

import { Caller } from "./caller.js";
import { pack } from "./frames.js";

const [url = "nats://127.0.0.1:4222", agent, handler, message, kind] = process.argv.slice(2);
const connection = await connect({ servers: url });
const caller = new Caller(connection);
try {
  if (!agent) {
    const rows = await caller.call("echo", 2, {
      x: pack(
        "f4",
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
        [3],
      ),
    });
    console.log(rows.map((row) => Array.from(row.x)));
    for await (const worker of await new Svcm(connection).client().info()) {
      console.log(worker.name, worker.id, worker.endpoints.map((endpoint) => endpoint.name).join(" "));
    }
  } else if (kind === "stream") {
    for await (const item of caller.stream(agent, handler, JSON.parse(message))) console.log(JSON.stringify(item));
  } else {
    console.log(JSON.stringify(await caller.ask(agent, handler, JSON.parse(message))));
  }
} catch (error) {
  console.error(`${error.code ?? error.name}: ${error.message}`);
  process.exitCode = 1;
} finally {
  caller.close();
  await connection.drain();
}
