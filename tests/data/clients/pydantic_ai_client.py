"""Pydantic AI with chat completions."""

import asyncio
import json
import sys

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def main() -> None:
    url, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    toolset = MCPToolset(StdioTransport(command[0], command[1:], env=env))
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="scripted")
    agent = Agent(OpenAIChatModel("scripted", provider=provider), toolsets=[toolset])
    async with agent:
        print((await agent.run("Go.")).output)


asyncio.run(main())
