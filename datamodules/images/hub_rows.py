"""Rows of data sets: of a folder, or of the Hugging Face hub, where some rows are read without all the others."""

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import HfApi, HfFileSystem, constants

from sdprobe.utilities import expect, progress
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import below, shown, special
from sdprobe.utilities.hub import Repository, size
from sdprobe.utilities.io import LARGEST_YAML, parsing, read_file, read_json, replacing, write_file
from sdprobe.utilities.rng import draw_below

datasets.disable_progress_bars()  # progress is shown by sdprobe.utilities.progress
CARDS = ("README.md", ".huggingface.yaml")  # may say which files are the data
WORKERS = 8  # files that are read at a time
Found = tuple[datasets.Dataset, Sequence[int]]


def find_rows(
    path: str, name: str | None, split: str, column: str, revision: str | None, limit: int | None, seed: int
) -> Found:
    """The rows of a split and their numbers: all, or ``limit`` that are drawn at random.

    Raises:
        InputError: the data set cannot be reached or read, or has no such configuration, split or column.
    """
    if Path(path).exists() or path.count("/") != 1:
        return _drawn(_local(path, name, split), split, limit, seed)
    repository = Repository(path, revision, "dataset", "images", ("README.md", "*.parquet"), "images.path=DIR")
    files = Files.of(repository, name)
    parts = [part.partition("[")[0].strip() for part in split.split("+")]  # of train[:12]+validation
    for part in parts:
        expect.one_of("images.split", part, files.splits)
    features = datasets.Features.from_dict(files.features) if files.features else None
    if features is not None:
        check_column(path, column, features)  # before anything is downloaded
    if limit is not None and files.module == "parquet" and parts == [split]:
        return _Shards(repository, files.splits[split], column).draw(files.lengths.get(split), split, limit, seed)
    folder = repository.fetch([file for part in parts for file in files.splits[part]])
    data_files = {part: [str(folder / file) for file in files.splits[part]] for part in parts}
    typed = features if files.module == "parquet" else None
    with _reading(path, split):
        loaded = datasets.load_dataset(files.module, data_files=data_files, split=split, features=typed)
    return _drawn(loaded, split, limit, seed)


def check_column(path: str, column: str, features: datasets.Features) -> None:
    """Raises InputError unless a column holds images: of ``datasets``, or encoded bytes as other tools write them."""
    expect.one_of("images.column", column, features)
    kind = features[column]
    encoded = kind == datasets.Value("binary") or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})
    if not encoded and not isinstance(kind, datasets.Image):
        raise InputError(
            f"Expected images.column to be a column of images, but '{column}' of {path} holds {kind}. Choose another column."
        )


def _drawn(found: datasets.Dataset, split: str, limit: int | None, seed: int) -> Found:
    if limit is None or limit >= len(found):
        return found, range(len(found))
    numbers = sorted(draw_below(len(found), limit, seed, split))
    return found.select(numbers), numbers


def _local(path: str, name: str | None, split: str) -> datasets.Dataset:
    folder = Path(path)
    if not folder.is_dir():
        got, fix = (
            ("a file", f"Use images.path={folder.parent}.") if folder.is_file() else ("which does not exist", "Check the path.")
        )
        raise InputError(
            f"Expected images.path to be owner/name on the Hugging Face hub or a dataset folder, but got '{path}', {got}. {fix}"
        )
    for entry in below(folder):
        if strange := special(Path(entry.path)):
            raise InputError(f"Expected {folder} to hold files, but '{shown(entry.name)}' is {strange}. Remove it.")
    if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        with _reading(path, split):
            stored = datasets.load_from_disk(path)
        if not isinstance(stored, datasets.DatasetDict):
            return stored
        expect.one_of("images.split", split, stored)
        return stored[split]
    check_names(folder)
    if not any(folder.rglob("*.parquet")):
        raise InputError(
            f"Expected {path} to be a dataset folder (parquet files, or written by save_to_disk), but it is not. "
            "Use images=folder for a folder of pictures."
        )
    with _reading(path, split), _choosing(path, name):
        return datasets.load_dataset(path, name, split=split)


def check_names(folder: Path) -> None:
    """Raises InputError if the card of a dataset folder names data at an address: a folder of others makes no request."""
    for card in [folder / name for name in CARDS if (folder / name).is_file()]:
        text = read_file(card, largest=LARGEST_YAML).decode(errors="replace")
        front = re.match(r"---\s*\n(.*?)\n---", text, re.S) if card.suffix == ".md" else re.match(r"(.*)", text, re.S)
        with parsing(card, yaml.YAMLError):
            content = yaml.load(front[1], getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if front else None
        configs = content.get("configs") if isinstance(content, dict) else None
        if elsewhere := next((name for name in _texts(configs) if "://" in name), None):
            raise InputError(
                f"Expected {card} to name files of its folder, but got '{shown(elsewhere)}'. Download the data, and remove it."
            )


def _texts(node: Any) -> Iterator[str]:
    """The texts in lists and mappings, at any depth; YAML may hold one node in many places."""
    pending, seen = [node], set[int]()
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list) and id(node) not in seen:
            seen.add(id(node))
            pending += node.values() if isinstance(node, dict) else node


@contextmanager
def _choosing(path: str, name: str | None, revision: str | None = None) -> Iterator[None]:
    """A block that chooses a configuration. If it fails for its name, the names that exist are told."""
    try:
        yield
    except ValueError as error:
        if "Config name is missing" not in str(error) and not str(error).startswith("BuilderConfig"):
            raise
        names = datasets.get_dataset_config_names(path, revision=revision)
        raise InputError(
            f"Expected images.name to be one of {', '.join(names)}, the configurations of {path}, but got {name!r}. "
            f"Use images.name={names[0]}, for example."
        ) from error


@contextmanager
def _reading(path: str, split: str) -> Iterator[None]:
    """A block that reads files of this machine, which may take minutes."""
    try:
        with progress.step(f"prepare {path}") as step:
            step.begin()
            yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"Expected {path} to hold a readable split '{split}', but got: {reason}. Check the folder.") from error


def _store(repository: Repository) -> Path:
    """Where the cache of ``datasets`` keeps what was found out about a commit, and rows that were drawn from it."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    return cache / "sdprobe" / repository.name.replace("/", "___") / repository.commit


def _digest(*key: object) -> str:
    return blake2b(repr(key).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Files:
    """A configuration of a data set on the hub, as its card and its folders state it.

    Args:
        module: the format, such as ``parquet``, by the name of the part of ``datasets`` that reads it.
        features: type of each column, if stated.
        splits: split → files.
        lengths: split → number of rows, where it is stated.
    """

    module: str
    features: dict[str, Any] | None
    splits: dict[str, list[str]]
    lengths: dict[str, int]

    @classmethod
    def of(cls, repository: Repository, name: str | None) -> "Files":
        """Found out once for each commit, and then remembered.

        Raises:
            InputError: the hub refuses or cannot be reached, or there is no such configuration.
        """
        remembered = _store(repository) / f"{_digest(name)}.json"
        if remembered.is_file():
            return cls(**read_json(remembered))
        path, commit = repository.name, repository.commit
        with repository.reaching(), _choosing(path, name, commit):
            try:
                builder = datasets.load_dataset_builder(path, name, revision=commit)
            except datasets.exceptions.DatasetNotFoundError:
                HfApi().auth_check(path, repo_type="dataset")  # the hub's own refusal, if that is the reason
                raise
            except datasets.exceptions.DataFilesNotFoundError as error:
                raise InputError(
                    f"Expected {path} to hold files that the datasets library reads, but got none. Choose another data set."
                ) from error
        stated = builder.info.splits or {}
        found = cls(
            module=type(builder).__module__.split(".")[2],  # datasets.packaged_modules.parquet.parquet
            features=builder.info.features.to_dict() if builder.info.features else None,
            splits={
                str(split): [url.partition(f"@{commit}/")[2] for url in urls]
                for split, urls in builder.config.data_files.items()
            },
            lengths={str(split): info.num_examples for split, info in stated.items() if info.num_examples},
        )
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_file(remembered, json.dumps(asdict(found)))
        return found


class _Shards:
    """The Parquet files of a split, of which single rows are read.

    Args:
        repository: that they belong to.
        names: in order.
        column: the only one that is read.
    """

    def __init__(self, repository: Repository, names: Sequence[str], column: str) -> None:
        self.repository, self.names, self.column = repository, names, column
        self.opened: dict[int, pq.ParquetFile] = {}
        self.hub = HfFileSystem(endpoint=constants.ENDPOINT, skip_instance_cache=True)

    def draw(self, stated: int | None, split: str, limit: int, seed: int) -> Found:
        """Rows that are drawn from the length that the card states. They are read once, and then remembered."""
        key = _digest(self.names, split, self.column, limit, seed)
        remembered = _store(self.repository) / f"{key}.arrow"
        if not remembered.is_file():
            with self.repository.reaching():
                self._write(remembered, self._located(stated, split, limit, seed))
        stored = datasets.Dataset.from_file(str(remembered))
        return stored.remove_columns("row"), stored["row"][:]

    def _located(self, stated: int | None, split: str, limit: int, seed: int) -> dict[int, dict[int, int]]:
        """Shard → number of the row in it → number of the row in the split.

        Shards that ``datasets`` writes hold the same number of rows, or one more. Where those that were drawn do not, or no
        number is stated, the footers of all shards are read.
        """
        count = len(self.names)
        even = [(stated + count - 1 - shard) // count for shard in range(count)] if stated else None
        lengths = even or self._lengths(range(count))
        while True:
            ends = list(accumulate(lengths))
            found: dict[int, dict[int, int]] = defaultdict(dict)
            for row in sorted(draw_below(ends[-1], min(limit, ends[-1]), seed, split)):
                shard = bisect_right(ends, row)
                found[shard][row - ends[shard] + lengths[shard]] = row
            if self._lengths(found) == [lengths[shard] for shard in found]:
                return dict(found)
            lengths = self._lengths(range(count))

    def _lengths(self, shards: Collection[int]) -> list[int]:
        """Number of rows of each of these shards, by their footers."""
        with ThreadPoolExecutor(WORKERS) as pool:
            self.opened |= dict(zip(shards, pool.map(self._open, shards), strict=True))
        return [self.opened[shard].metadata.num_rows for shard in shards]

    def _open(self, shard: int) -> pq.ParquetFile:
        if shard in self.opened:
            return self.opened[shard]
        name = self.names[shard]
        cached = self.repository.cached(name)
        url = f"datasets/{self.repository.name}@{self.repository.commit}/{name}"
        # without a cache, only the bytes that are asked for are sent
        source = cached or self.hub.open(url, size=self.repository.files[name], cache_type="none")
        return pq.ParquetFile(source, pre_buffer=True)

    def _write(self, path: Path, located: dict[int, dict[int, int]]) -> None:
        shards = list(located)
        expect.one_of("images.column", self.column, self.opened[shards[0]].schema_arrow.names)
        groups = {shard: self._groups(shard, rows) for shard, rows in located.items()}
        sizes = {shard: sum(self._size(shard, group) for group in groups[shard]) for shard in shards}
        total, count = sum(sizes.values()), sum(map(len, located.values()))
        if total:
            of = f"{len(shards)} of {progress.counted(len(self.names), 'file')}"
            self.repository.announce(f"{progress.counted(count, 'row')} from {of}, {size(total)}, to {path.parent}")
        path.parent.mkdir(parents=True, exist_ok=True)
        done, writer = 0, None
        with self.repository.downloading(total) as step, replacing(path) as file, ThreadPoolExecutor(WORKERS) as pool:
            for first in range(0, len(shards), WORKERS):
                some = shards[first : first + WORKERS]
                for shard, table in zip(some, pool.map(lambda shard: self._read(shard, groups[shard]), some), strict=True):
                    writer = writer or pa.ipc.new_stream(file, schema := table.schema)
                    writer.write_table(table.cast(schema))
                    done += sizes[shard]
                    step.advance(done // 10**6 - step.done)
            if writer:
                writer.close()

    def _groups(self, shard: int, rows: dict[int, int]) -> dict[int, dict[int, int]]:
        """Row group → number of the row in it → number of the row in the split."""
        metadata = self.opened[shard].metadata
        ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        found: dict[int, dict[int, int]] = defaultdict(dict)
        for local, row in rows.items():
            group = bisect_right(ends, local)
            found[group][local - ends[group] + metadata.row_group(group).num_rows] = row
        return found

    def _size(self, shard: int, group: int) -> int:
        """Bytes of the column in a row group, which are read at once; 0 if the file is in the cache."""
        if self.repository.cached(self.names[shard]):
            return 0
        stored = self.opened[shard].metadata.row_group(group)
        columns = (stored.column(index) for index in range(stored.num_columns))
        return sum(column.total_compressed_size for column in columns if column.path_in_schema.split(".")[0] == self.column)

    def _read(self, shard: int, groups: dict[int, dict[int, int]]) -> pa.Table:
        """Some rows of a shard, with their numbers in the split."""
        tables = []
        for group, rows in groups.items():
            table = self.opened[shard].read_row_group(group, columns=[self.column]).take(list(rows))
            tables.append(table.append_column("row", pa.array(rows.values(), pa.int64())))
        return pa.concat_tables(tables).replace_schema_metadata(None)
