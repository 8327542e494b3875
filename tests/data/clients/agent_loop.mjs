// A minimal agent: asks the scripted model, calls the tools that it names, until it answers.
export async function converse(url, client) {
  const { tools } = await client.listTools();
  const offered = tools.map(({ name, description, inputSchema }) => ({
    type: "function", function: { name, description, parameters: inputSchema },
  }));
  const messages = [{ role: "user", content: "Go." }];
  for (;;) {
    const body = JSON.stringify({ model: "scripted", messages, tools: offered });
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body });
    const { message } = (await response.json()).choices[0];
    messages.push(message);
    if (!message.tool_calls) return console.log(message.content);
    for (const { id, function: { name, arguments: text } } of message.tool_calls) {
      const { content } = await client.callTool({ name, arguments: JSON.parse(text) });
      const told = content.map((part) => part.text).join("\n");
      messages.push({ role: "tool", tool_call_id: id, content: told });
    }
  }
}
