// The TypeScript SDK, generation 2, with its limit of 60 s; its model sees the text of each result.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { converse } from "./agent_loop.mjs";

const [url, command, env] = [process.argv[2], ...process.argv.slice(3, 5).map(JSON.parse)];
const transport = new StdioClientTransport({ command: command[0], args: command.slice(1), env });
const client = new Client({ name: "agent", version: "1" }, { capabilities: {} });
await client.connect(transport);
await converse(url, client);
await client.close();
