"""Google's Agent Development Kit with Gemini's API."""

import asyncio
import json
import sys

from google.adk.agents import LlmAgent
from google.adk.runners import InMemoryRunner
from google.adk.tools.mcp_tool import McpToolset, StdioConnectionParams
from google.genai import types
from mcp import StdioServerParameters


async def main() -> None:
    command, env = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    server = StdioServerParameters(command=command[0], args=command[1:], env=env)
    toolset = McpToolset(
        connection_params=StdioConnectionParams(server_params=server, timeout=3600)
    )
    agent = LlmAgent(name="agent", model="gemini-2.5-flash", tools=[toolset])
    runner = InMemoryRunner(agent=agent, app_name="app")
    session = await runner.session_service.create_session(app_name="app", user_id="user")
    prompt = types.Content(role="user", parts=[types.Part(text="Go.")])
    events = runner.run_async(user_id="user", session_id=session.id, new_message=prompt)
    async for event in events:
        print(event.content)
    await toolset.close()


asyncio.run(main())
