"""The official Python SDK's client; its model sees the text of each result."""

import asyncio
import json
import sys

from agent_loop import converse, function
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client


async def main() -> None:
    url, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    server = StdioServerParameters(command=command[0], args=command[1:], env=env)
    async with Client(stdio_client(server)) as client:

        async def call(name: str, arguments: dict) -> str:
            result = await client.call_tool(name, arguments)
            return "\n".join(part.text for part in result.content)

        listed = (await client.list_tools()).tools
        offered = [function(t.name, t.description, t.input_schema) for t in listed]
        print(await converse(url, offered, call))


asyncio.run(main())
