"""The OpenAI Agents SDK, with the time limit that docs/clients.md names."""

import asyncio
import json
import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from agents.mcp import MCPServerStdio
from openai import AsyncOpenAI


async def main() -> None:
    url, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    set_tracing_disabled(True)
    params = {"command": command[0], "args": command[1:], "env": env}
    async with MCPServerStdio(params, client_session_timeout_seconds=3600) as server:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="scripted")
        model = OpenAIChatCompletionsModel("scripted", client)
        agent = Agent("agent", mcp_servers=[server], model=model)
        print((await Runner.run(agent, "Go.", max_turns=20)).final_output)


asyncio.run(main())
