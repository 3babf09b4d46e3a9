"""``FakeFiles``: a host's place for secrets and configs, without a host. Passes the contract tests of the real one."""

from __future__ import annotations

from swarm_agent.agent.tmpfs_files import File, FilesError


class FakeFiles:
    """``held`` is what lies there, by task and name. ``full``: nothing more can be written."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, File]] = {}
        self.full = False

    def reboot(self) -> None:
        """What is in memory is gone."""
        self.held.clear()

    async def write(self, task_id: str, files: tuple[File, ...]) -> tuple[str, ...]:
        if self.full:
            raise FilesError("cannot write secrets and configs: planted")
        self.held[task_id] = {file.name: file for file in files}
        return tuple(f"/fake/{task_id}/{file.name}" for file in files)

    async def wipe(self, task_id: str) -> None:
        self.held.pop(task_id, None)

    async def tasks(self) -> list[str]:
        return sorted(self.held)
