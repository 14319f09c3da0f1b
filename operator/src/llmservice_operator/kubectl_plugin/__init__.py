"""`kubectl llm`: a plugin of kubectl for users of LLMServices.

command_line  arguments, errors and exit statuses; imports a subcommand only when it runs
kubectl       runs kubectl, the plugin's only way to the API server and to ports of pods
objects       reads the objects of a service
story         objects -> the state of a service; pure
screen        prints text, tables and JSON
status, logs, restart, top, chat, bench   the subcommands that need a cluster

The subcommands that need no cluster are in file_commands.
"""
