"""LangChain's adapter, with a session that stays open."""

import asyncio
import json
import sys

from agent_loop import converse, function
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools


async def main() -> None:
    url, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    entry = {"transport": "stdio", "command": command[0], "args": command[1:], "env": env}
    client = MultiServerMCPClient({"codex": entry})
    async with client.session("codex") as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}

        async def call(name: str, arguments: dict) -> str:
            call = {"name": name, "args": arguments, "id": "1", "type": "tool_call"}
            try:
                message = await tools[name].ainvoke(call)
            except Exception as error:  # As LangChain's own ToolNode does.
                return f"Error: {error}"
            content = message.content
            return content if isinstance(content, str) else "\n".join(p["text"] for p in content)

        offered = [function(t.name, t.description, t.args_schema) for t in tools.values()]
        print(await converse(url, offered, call))


asyncio.run(main())
