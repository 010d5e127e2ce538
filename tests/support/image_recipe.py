"""Execute a Dockerfile without a container engine, each stage in a new root folder.

Every instruction is executed or recorded as an engine would do; an unknown instruction is an error. Only the
instructions that this project uses are supported: no globs in the build context except those of ``.dockerignore``, and
no heredocs.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped] # it ships no types
from pathspec.patterns.gitignore.basic import GitIgnoreBasicPattern

from tests.support.debian_root import PATH, build_step, fresh_root
from tests.support.processes import binary


@dataclass
class Image:
    """A stage: its root folder, and its settings for running it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    folder: str = "/"
    labels: dict[str, str] = field(default_factory=dict)
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their text; continuation lines are joined, comments left out."""
    parser = DockerfileParser(fileobj=io.BytesIO(dockerfile.read_bytes()))
    return [(each["instruction"], each["value"]) for each in parser.structure if each["instruction"] != "COMMENT"]


def context(project: Path, ignore: Path) -> list[Path]:
    """Return the files that ``docker build`` would send, relative to the project.

    A pattern is relative to the root, also matches everything below its match, and the last match decides.
    """
    lines = [line.strip() for line in ignore.read_text().splitlines() if line.strip() and not line.startswith("#")]
    patterns = [(not line.startswith("!"), GitIgnoreBasicPattern("/" + line.lstrip("!/"))) for line in lines]

    def left_out(path: Path) -> bool:
        out = False
        for ignores, pattern in patterns:
            if any(pattern.match_file(str(each)) for each in (path, *path.parents[:-1])):
                out = ignores
        return out

    top = [path for path in project.iterdir() if not (path.is_dir() and path.name in {".git", ".venv", ".cache"})]
    files = [found for path in top for found in ([path] if path.is_file() else path.rglob("*")) if found.is_file()]
    return sorted(each for path in files if not left_out(each := path.relative_to(project)))


class Recipe:
    """One build of a Dockerfile.

    ``context`` is the folder of the build context. The root folders of the stages are created in ``work``.
    """

    def __init__(self, dockerfile: Path, context: Path, work: Path) -> None:
        self.context = context
        self.work = work
        self.steps = instructions(dockerfile)
        self.arguments: dict[str, str] = {}
        self.stages: dict[str, Image] = {}
        self.log: list[str] = []

    def build(self) -> Image:
        """Execute all instructions and return the last stage; raise AssertionError with the output if a step fails."""
        image: Image | None = None
        for instruction, value in self.steps:
            self.log.append(f"{instruction} {value}")
            if instruction == "ARG" and image is None:
                name, _, default = value.partition("=")
                self.arguments[name] = default
            elif instruction == "FROM":
                image = self._stage(value)
            else:
                assert image is not None, f"{instruction} is before FROM"
                step = getattr(self, "_" + instruction.lower(), None)
                assert step is not None, f"the instruction {instruction} is not supported"
                step(image, value)
        assert image is not None
        return image

    def _stage(self, value: str) -> Image:
        text = re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], value)
        base, _, name = text.partition(" AS ")
        release = re.fullmatch(r"debian:(\w+)-slim", base)
        assert release, f"debootstrap cannot create the image {base}; expected debian:RELEASE-slim"
        name = name or str(len(self.stages))
        self.stages[name] = Image(fresh_root(release[1], self.work / name))
        return self.stages[name]

    def _run(self, image: Image, value: str) -> None:
        done = build_step(
            image.root, ["/bin/sh", "-c", value], env=image.env, user=image.user, folder=image.folder
        )  # fmt: skip
        assert done.code == 0, f"RUN {value}\n{done.output[-4000:]}"

    def _copy(self, image: Image, value: str) -> None:
        words = shlex.split(value)
        source = self.context
        if words[0].startswith("--from="):
            source = self.stages[words.pop(0).partition("=")[2]].root
        assert not words[0].startswith("--"), words[0]
        *names, target = words
        into = image.root / (Path(image.folder) / target).relative_to("/")
        for name in names:
            found = source / name.lstrip("/")
            assert found.exists(), f"COPY {name}: the file does not exist in {source}"
            # The content of a folder is copied; a file goes below a target that ends in a slash.
            executor = into if found.is_dir() or not target.endswith("/") else into / found.name
            executor.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                executor.mkdir(parents=True, exist_ok=True)
            copied = f"{found}/." if found.is_dir() else str(found)
            subprocess.run([binary("cp"), "-a", "--no-preserve=ownership", copied, str(executor)], check=True)

    def _workdir(self, image: Image, value: str) -> None:
        image.folder = value
        (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _env(self, image: Image, value: str) -> None:
        image.env |= dict(word.split("=", 1) for word in shlex.split(value))

    def _label(self, image: Image, value: str) -> None:
        image.labels |= dict(word.split("=", 1) for word in shlex.split(value))

    def _user(self, image: Image, value: str) -> None:
        image.user = value

    def _volume(self, image: Image, value: str) -> None:
        image.volumes += json.loads(value)

    def _expose(self, image: Image, value: str) -> None:
        image.ports += value.split()

    def _stopsignal(self, image: Image, value: str) -> None:
        image.stop_signal = value

    def _entrypoint(self, image: Image, value: str) -> None:
        image.entrypoint = json.loads(value)

    def _healthcheck(self, image: Image, value: str) -> None:
        image.healthcheck = json.loads(value[value.index("[") :])
        assert image.healthcheck[0] != "CMD", f"expected only the words of the command, found {image.healthcheck}"


def stage_context(project: Path, folder: Path) -> Path:
    """Copy the build context of a project to ``folder``, which must not exist."""
    for path in context(project, project / ".dockerignore"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / path, folder / path)
    return folder
