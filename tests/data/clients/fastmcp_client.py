"""FastMCP's client; its model sees the structured content, or the text of an error."""

import asyncio
import json
import sys

from agent_loop import converse, function
from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def main() -> None:
    url, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    async with Client(StdioTransport(command[0], command[1:], env=env)) as client:

        async def call(name: str, arguments: dict) -> str:
            result = await client.call_tool(name, arguments, raise_on_error=False)
            if result.is_error:
                return "\n".join(part.text for part in result.content)
            return json.dumps(result.structured_content)

        listed = await client.list_tools()
        schema = "input_schema" if hasattr(listed[0], "input_schema") else "inputSchema"
        offered = [function(t.name, t.description, getattr(t, schema)) for t in listed]
        print(await converse(url, offered, call))


asyncio.run(main())
