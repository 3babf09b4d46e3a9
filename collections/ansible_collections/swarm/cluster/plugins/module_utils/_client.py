# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection, may change any time: Docker's HTTP API over a Unix socket, with the standard library only."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import urllib.parse

API = "/v1.41"
ARGUMENTS = {
    "socket": {"type": "path", "default": "/run/swarm-agent/docker.sock"},
    "timeout": {"type": "int", "default": 60},
}
# What to do about a membership that cannot be taken up, dearest last.
BROKEN = (
    "Mend what that names, then systemctl restart swarm-agent. Only if it cannot be mended, docker swarm leave --force gives the membership "
    "up: the host's tasks end, and what only a last manager knows is lost"
)
# An election takes a second or two: a request that meets one is asked again.
PATIENCE_S = 20.0


class ApiError(Exception):
    """The API said no, or nothing. ``status`` is 0 if no HTTP answer came."""

    def __init__(self, message, status=0):
        super().__init__(message)
        self.status = status


class Unreachable(ApiError):
    """Nothing listens, or it did not answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One request a connection: modules are short-lived and the socket is local."""

    def __init__(self, path, timeout=60, patience=PATIENCE_S):
        self.path = path
        self.timeout = timeout
        self.patience = patience

    @classmethod
    def of(cls, module):
        default = ARGUMENTS["socket"]["default"]
        path = module.params["socket"]
        if path == default:
            path = os.environ.get("SWARM_AGENT_SOCKET", default)
        return cls(path, module.params["timeout"])

    def get(self, path, query=None, headers=None):
        return self.call("GET", path, query, headers=headers)

    def call(self, method, path, query=None, body=None, headers=None):
        """The decoded answer; ``ApiError`` for anything but success."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self._once(method, path, query, body, headers)
            except ApiError as error:
                # Nothing was written in these cases, so asking again is safe.
                if not _leaderless(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _once(self, method, path, query, body, headers):
        url = API + path
        if query:
            plain = {}
            for key, value in query.items():
                plain[key] = json.dumps(value) if isinstance(value, dict) else value
            url += "?" + urllib.parse.urlencode(plain)
        data = None
        headers = dict(headers or {})
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request(method, url, body=data, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except FileNotFoundError as error:
            raise Unreachable(
                "no swarm-agent on this host: %s does not exist. Is the service running? (systemctl status swarm-agent)"
                % self.path
            ) from error
        except ConnectionRefusedError as error:
            raise Unreachable(
                "swarm-agent does not run: nothing listens at %s (systemctl start swarm-agent)" % self.path
            ) from error
        except PermissionError as error:
            raise Unreachable(
                "no permission to use %s: set become to true, or add the user to the group docker" % self.path
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                "swarm-agent at %s did not answer %s %s: %s" % (self.path, method, path, error or type(error).__name__)
            ) from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise ApiError(_message(text), answer.status)
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise ApiError("%s %s answered something that is not JSON: %r" % (method, path, text[:200]), answer.status) from error


def _message(text):
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text.decode("utf-8", "replace").strip()
    prefix, found, rest = message.partition(" desc = ")
    if found and prefix.startswith("rpc error: code = "):
        message = rest
    return message.strip()


def _leaderless(error):
    return "does not have a leader" in str(error)


def undisturbed(step, attempts=5):
    """Run ``step``, which reads and then writes; again, if somebody else wrote in between."""
    for attempt in range(attempts):
        try:
            return step()
        except ApiError as error:
            if "out of sequence" not in str(error) or attempt == attempts - 1:
                raise
    raise AssertionError("the loop returns or raises")


def is_manager(info):
    return bool((info.get("Swarm") or {}).get("ControlAvailable"))


def require_manager(client):
    """/info of a manager; a clear error anywhere else."""
    info = client.get("/info")
    if is_manager(info):
        return info
    state = (info.get("Swarm") or {}).get("LocalNodeState")
    if state == "active":
        managers = ", ".join(m["Addr"] for m in info["Swarm"].get("RemoteManagers") or ())
        raise ApiError(
            "this host is a worker of its swarm and only managers know services and nodes: "
            "run the task on a manager (delegate_to). Managers: %s" % (managers or "unknown")
        )
    if state == "locked":
        raise ApiError("this manager is locked: unlock it first (docker swarm unlock)")
    raise ApiError("this host is in no swarm (its state is %s): make it join first, with site.yml or swarm_member" % state)
