"""Loads, unloads and serves LoRA adapters through vLLM inside the process.

vLLM's own routes for adapters would be open to every client. They would also keep the number of an
adapter whose files change under the same name. This module gives each loaded adapter a new number
and a new internal name, so neither the prefix cache nor a batch mixes two adapters of the same
name.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmservice_server.adapter_list import Adapter
from llmservice_server.compat import Vllm
from llmservice_server.errors import EngineUnavailable
from llmservice_server.queue_place import Refusal, note_refusal

_MARK = "@"
"""Separator between the name for clients and the number in an internal name. No name for clients
contains it."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in the engine."""

    adapter: Adapter
    request: Any
    """vLLM's LoRARequest, which every request for the adapter carries."""


class _Served(dict[str, Any]):
    """Name for clients -> vLLM's LoRARequest. vLLM looks up the model name of each request here."""

    def __init__(self, served: Mapping[str, Any], missing: Mapping[str, str]) -> None:
        super().__init__(served)
        self._missing = missing

    def __contains__(self, name: object) -> bool:
        # Other replicas may serve the name, so the client should try again.
        if isinstance(name, str) and name in self._missing:
            note_refusal(Refusal.NO_ADAPTER)
            raise EngineUnavailable(
                f"this replica does not have the adapter {name} ({self._missing[name]}); send the "
                "request again"
            )
        return super().__contains__(name)


class EngineAdapters:
    """The adapters of a running engine."""

    def __init__(self, vllm: Vllm, llm: Any, models: Any) -> None:
        """Take over the adapters in `models`, which is vLLM's list of the served models."""
        self._vllm = vllm
        self._llm = llm
        self._models = models
        self._numbers = itertools.count(1)
        self._show_all = models.show_available_models
        models.show_available_models = self._show
        models.model_name = self._model_name
        self._sources: dict[str, str] = {}

    def is_name_of_model(self, name: str) -> bool:
        """Return whether the model itself is served by this name."""
        return bool(self._models.is_base_model(name))

    async def load(self, adapter: Adapter, folder: Path) -> LoadedAdapter:
        """Load an adapter into the engine. Raises vLLM's errors."""
        number = next(self._numbers)
        request = self._vllm.LoRARequest(
            lora_name=f"{adapter.name}{_MARK}{number}", lora_int_id=number, lora_path=str(folder)
        )
        try:
            await self._llm.add_lora(request)
        except self._vllm.EngineDeadError:
            raise
        except Exception:
            # vLLM keeps the adapter even if its weights do not fit the model.
            await self._llm.remove_lora(number)
            raise
        return LoadedAdapter(adapter, request)

    async def unload(self, loaded: LoadedAdapter) -> None:
        """Remove an adapter that no request uses any more."""
        await self._llm.remove_lora(loaded.request.lora_int_id)

    def is_in_use(self, loaded: LoadedAdapter) -> bool:
        """Return whether the engine has an unfinished request for the adapter."""
        states = self._llm.output_processor.request_states.values()
        return any(state.lora_request is loaded.request for state in states)

    def serve(self, served: Mapping[str, LoadedAdapter], missing: Mapping[str, str]) -> None:
        """Serve these adapters by name from now on, and no others.

        Requests in progress keep the adapter that they began with. `missing` contains the names
        that other replicas may serve, with the reason why this replica does not.
        """
        self._sources = {name: loaded.adapter.source for name, loaded in served.items()}
        requests = {name: loaded.request for name, loaded in served.items()}
        self._models.lora_requests = _Served(requests, missing)

    async def _show(self) -> Any:
        shown = await self._show_all()
        base = [card for card in shown.data if card.parent is None]
        update = {"parent": base[0].id}
        adapters = [
            base[0].model_copy(update={**update, "id": name, "root": source})
            for name, source in self._sources.items()
        ]
        shown.data = base + adapters
        return shown

    def _model_name(self, lora_request: Any = None) -> str:
        if lora_request is None:
            return str(self._models.base_model_paths[0].name)
        return str(lora_request.lora_name).rpartition(_MARK)[0]
