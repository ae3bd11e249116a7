"""Steps 3 and 5: tuf-client against repositories that python-tuf and securesystemslib made.

Another implementation writes, ours reads: canonical JSON, key objects, ECDSA, RSA-PSS and ed25519 signatures,
delegations, hash bins, odd names, rotation, rollback, expiry under a moved clock. tests/tuf-conformance runs this
where the public tuf-conformance suite is not at hand, with the same command line.

Environment: TUF_CLIENT is the program to test.
"""

import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
import unittest
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

CLIENT = os.environ["TUF_CLIENT"]
NOW = datetime.now(UTC).replace(microsecond=0)
TOP = ("root", "timestamp", "snapshot", "targets")


def signer(kind="ecdsa"):
    return getattr(CryptoSigner, f"generate_{kind}")()


class Repo:
    """A repository: metadata objects to change, and the files that were published from them."""

    def __init__(self, kind="ecdsa", consistent=True):
        expires = NOW + timedelta(days=30)
        self.root = Root(expires=expires, consistent_snapshot=consistent)
        self.timestamp = Timestamp(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.targets = Targets(expires=expires)
        self.delegated = {}
        self.signers = {}
        self.files = {}
        self.asked = []
        self.pins = False
        for role in TOP:
            self.set_keys(role, [signer(kind)], 1)
        self.publish("root", "targets", "snapshot", "timestamp", bump=False)

    def set_keys(self, role, signers, threshold):
        self.root.roles[role].keyids.clear()
        for one in signers:
            self.root.add_key(one.public_key, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = list(signers)

    def signed(self, role):
        return self.delegated[role] if role in self.delegated else getattr(self, role)

    def publish(self, *roles, bump=True):
        """Signs these roles, in this order, and serves them; what pins them follows only if it is in the list."""
        for role in roles:
            content = self.signed(role)
            if bump:
                content.version += 1
            if role == "snapshot":
                for name in ("targets", *self.delegated):
                    self.snapshot.meta[f"{name}.json"] = self.pin(name)
            if role == "timestamp":
                self.timestamp.snapshot_meta = self.pin("snapshot")
            metadata = Metadata(content)
            for one in self.signers[role]:
                metadata.sign(one, append=True)
            self.serve(role, metadata.to_bytes(JSONSerializer()))

    def release(self):
        self.publish(*self.delegated, "targets", "snapshot", "timestamp")

    def name(self, role):
        versioned = role == "root" or (self.root.consistent_snapshot and role != "timestamp")
        return f"{self.signed(role).version}.{role}.json" if versioned else f"{role}.json"

    def serve(self, role, data):
        self.files[f"metadata/{self.name(role)}"] = data

    def data(self, role):
        return self.files[f"metadata/{self.name(role)}"]

    def pin(self, role):
        if not self.pins:
            return MetaFile(self.signed(role).version)
        return MetaFile.from_data(self.signed(role).version, self.data(role), ["sha256"])

    def add_target(self, path, data, role="targets", hashes=("sha256",)):
        target = TargetFile.from_data(path, data, list(hashes))
        self.signed(role).targets[path] = target
        name = path
        if self.root.consistent_snapshot:
            folder, slash, name = path.rpartition("/")
            name = f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"
        self.files[f"targets/{name}"] = data

    def delegate(self, name, paths=None, by="targets", terminating=False, prefixes=None, expires=None):
        delegator = self.signed(by)
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, {})
        delegator.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, paths, prefixes)
        one = signer()
        delegator.add_key(one.public_key, name)
        self.signers[name] = [one]
        if name not in self.delegated:
            self.delegated[name] = Targets(expires=expires or NOW + timedelta(days=30))
            # Publishing makes it 1.
            self.delegated[name].version = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        repo = self.server.repo
        path = self.path.lstrip("/")
        repo.asked.append(path)
        data = repo.files.get(path, repo.files.get(unquote(path)))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_):
        pass


class Case(unittest.TestCase):
    def setUp(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.folder = tempfile.mkdtemp(prefix="tuf-client-")
        self.metadata = os.path.join(self.folder, "metadata")
        self.downloads = os.path.join(self.folder, "downloads")
        os.mkdir(self.metadata)
        os.mkdir(self.downloads)

    def tearDown(self):
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder)

    def use(self, repo):
        """Serves `repo` and trusts its present root."""
        self.server.repo = self.repo = repo
        path = os.path.join(self.folder, "initial.json")
        with open(path, "wb") as file:
            file.write(repo.data("root"))
        self.assertEqual(self.run_client("init", path), 0)
        return repo

    def run_client(self, *args, days=0):
        clock = ["faketime", f"{NOW + timedelta(days=days):%Y-%m-%d %H:%M:%S}"] if days else []
        env = {**os.environ, "TZ": "UTC"}
        command = [*clock, CLIENT, "--metadata-dir", self.metadata, *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        self.said = done.stderr
        if done.returncode:
            # One line, the chain once.
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        return done.returncode

    def refresh(self, days=0):
        return self.run_client("--metadata-url", f"{self.url}/metadata", "refresh", days=days)

    def download(self, *names, days=0):
        targets = [arg for name in names for arg in ("--target-name", name)]
        return self.run_client(
            "--metadata-url", f"{self.url}/metadata", *targets, "--target-base-url", f"{self.url}/targets",
            "--target-dir", self.downloads, "download", days=days,
        )

    def got(self):
        data = []
        for name in sorted(os.listdir(self.downloads)):
            with open(os.path.join(self.downloads, name), "rb") as file:
                data.append(file.read())
        return data

    def accepted(self):
        out = {}
        for name in os.listdir(self.metadata):
            if name.endswith(".json"):
                with open(os.path.join(self.metadata, name), "rb") as file:
                    out[name.removesuffix(".json")] = json.load(file)["signed"]["version"]
        return out

    def versions(self, root, timestamp, snapshot, targets):
        self.assertEqual(
            self.accepted(), {"root": root, "timestamp": timestamp, "snapshot": snapshot, "targets": targets}
        )

    def ok(self, code):
        self.assertEqual(code, 0, self.said)

    def no(self, code, word):
        self.assertEqual(code, 1, self.said)
        self.assertIn(word, self.said)


class Formats(Case):
    def test_keys_of_three_kinds(self):
        for kind in ("ecdsa", "rsa", "ed25519"):
            with self.subTest(kind):
                self.metadata = tempfile.mkdtemp(dir=self.folder)
                self.downloads = tempfile.mkdtemp(dir=self.folder)
                repo = self.use(Repo(kind))
                repo.add_target("folder/file", b"content")
                repo.release()
                self.ok(self.download("folder/file"))
                self.assertEqual(self.got(), [b"content"])

    def test_files_are_kept_byte_for_byte(self):
        repo = self.use(Repo())
        self.ok(self.refresh())
        for role in TOP:
            with open(os.path.join(self.metadata, f"{role}.json"), "rb") as file:
                self.assertEqual(file.read(), repo.data(role))

    def test_only_what_is_needed_is_asked_for(self):
        repo = self.use(Repo())
        self.ok(self.refresh())
        names = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
        self.assertEqual(repo.asked, [f"metadata/{name}" for name in names])
        repo.asked.clear()
        self.ok(self.refresh())
        self.assertEqual(repo.asked, [f"metadata/{name}" for name in names[:2]])

    def test_without_consistent_snapshots(self):
        repo = self.use(Repo(consistent=False))
        repo.add_target("folder/file", b"content")
        repo.release()
        self.ok(self.download("folder/file"))
        self.assertEqual(self.got(), [b"content"])
        self.assertIn("targets/folder/file", repo.asked)

    def test_unknown_fields(self):
        repo = self.use(Repo())
        repo.root.unrecognized_fields["x-new"] = {"a": [1, 2, "ü\n\"\\"]}
        repo.root.roles["root"].unrecognized_fields["x-role"] = True
        for key in repo.root.keys.values():
            key.unrecognized_fields["x-key"] = None
        repo.publish("root")
        self.ok(self.refresh())
        self.versions(2, 1, 1, 1)

    def test_sha512_alone(self):
        repo = self.use(Repo())
        repo.add_target("file", b"content", hashes=("sha512",))
        repo.release()
        self.ok(self.download("file"))
        self.assertEqual(self.got(), [b"content"])

    def test_key_ids_chosen_by_others(self):
        repo = Repo()
        one = signer()
        one.public_key.keyid = "not-a-hash"
        repo.set_keys("timestamp", [one], 1)
        repo.publish("root", "timestamp", bump=False)
        self.use(repo)
        self.ok(self.refresh())


class Delegation(Case):
    def test_found_through_two_levels(self):
        repo = self.use(Repo())
        repo.delegate("one", ["a/*"])
        repo.delegate("two", ["a/*"], by="one")
        repo.add_target("a/file", b"content", role="two")
        repo.release()
        self.ok(self.download("a/file"))
        self.assertEqual(self.got(), [b"content"])
        self.assertEqual(self.accepted()["two"], 1)

    def test_not_found_where_the_path_is_not_delegated(self):
        repo = self.use(Repo())
        repo.delegate("one", ["a/*"])
        for path in ("b/file", "a/deep/file", "file"):
            repo.add_target(path, b"content", role="one")
        repo.release()
        for path in ("b/file", "a/deep/file", "file"):
            self.no(self.download(path), "no trusted metadata lists")

    def test_terminating(self):
        repo = self.use(Repo())
        repo.delegate("one", ["a/*"], terminating=True)
        repo.delegate("two", ["a/*"])
        repo.add_target("a/file", b"content", role="two")
        repo.release()
        self.no(self.download("a/file"), "no trusted metadata lists")
        self.assertNotIn("two", self.accepted())

    def test_first_in_order_wins(self):
        repo = self.use(Repo())
        repo.delegate("one", ["a/*"])
        repo.delegate("two", ["a/*"])
        repo.add_target("a/file", b"from two", role="two")
        repo.add_target("a/file", b"from one", role="one")
        repo.release()
        self.ok(self.download("a/file"))
        self.assertEqual(self.got(), [b"from one"])

    def test_cycle_ends(self):
        repo = self.use(Repo())
        repo.delegate("one", ["*"])
        repo.delegate("two", ["*"], by="one")
        repo.delegated["two"].delegations = repo.targets.delegations
        repo.release()
        self.no(self.download("file"), "no trusted metadata lists")

    def test_hash_bins(self):
        repo = self.use(Repo())
        for digit in "0123456789abcdef":
            repo.delegate(f"bin-{digit}", prefixes=[digit])
        # sha256("file") begins with 3.
        repo.add_target("file", b"content", role="bin-3")
        repo.release()
        self.ok(self.download("file"))
        self.assertEqual(self.got(), [b"content"])

    def test_wrong_key(self):
        repo = self.use(Repo())
        repo.delegate("one", ["*"])
        repo.add_target("file", b"content", role="one")
        repo.signers["one"] = [signer()]
        repo.release()
        self.no(self.download("file"), "one metadata is not signed by enough trusted keys")
        self.assertEqual(self.got(), [])

    def test_older_version(self):
        repo = self.use(Repo())
        repo.delegate("one", ["*"])
        repo.add_target("file", b"content", role="one")
        repo.release()
        repo.release()
        self.ok(self.refresh())
        repo.delegated["one"].version = 0
        repo.release()
        self.no(self.download("file"), "older than seen before")

    def test_expired(self):
        repo = self.use(Repo())
        repo.delegate("one", ["*"], expires=NOW + timedelta(days=7))
        repo.add_target("first", b"1", role="one")
        repo.add_target("second", b"2", role="one")
        repo.release()
        self.ok(self.download("first"))
        self.no(self.download("second", days=18), "expired")
        repo.delegated["one"].expires = NOW + timedelta(days=21)
        repo.release()
        self.ok(self.download("second", days=18))
        self.assertEqual(self.got(), [b"1", b"2"])

    def test_odd_names(self):
        for role in ("?", "#", "a/b", "../one", ".", "%2F", "ü", " "):
            with self.subTest(role):
                self.metadata = tempfile.mkdtemp(dir=self.folder)
                self.downloads = tempfile.mkdtemp(dir=self.folder)
                repo = self.use(Repo())
                repo.delegate(role, ["*"])
                repo.add_target("file", b"content", role=role)
                repo.release()
                encoded = f"metadata/1.{quote(role, '')}.json"
                repo.files[encoded] = repo.files.pop(f"metadata/1.{role}.json")
                before = set(os.listdir(self.folder))
                self.ok(self.download("file"))
                self.assertEqual(self.got(), [b"content"])
                # Nothing was written outside of the two folders.
                self.assertEqual(set(os.listdir(self.folder)), before)


class Rotation(Case):
    def rotate(self, keys, threshold, signs):
        self.repo.set_keys("root", [self.pool[i] for i in keys], threshold)
        self.repo.signers["root"] = [self.pool[i] for i in signs]
        self.repo.publish("root")

    def start(self, keys, threshold):
        self.pool = [signer("ed25519") for _ in range(10)]
        repo = Repo()
        repo.set_keys("root", [self.pool[i] for i in keys], threshold)
        repo.publish("root", bump=False)
        self.use(repo)

    def test_root(self):
        # First keys and threshold; then for the next root its keys, its threshold, who signs, whether it is taken.
        cases = [
            ([0], 1, [1], 1, [0, 1], True),
            ([0], 1, [1], 1, [0, 1, 7, 8], True),
            ([0], 1, [1], 1, [1], False),
            ([0], 1, [1], 1, [0], False),
            ([0, 1, 2, 3, 4], 3, [0, 1, 2, 3, 5], 3, [0, 2, 3], True),
            ([0, 1, 2, 3, 4], 3, [0, 1, 2, 3, 5], 3, [0, 2, 5], False),
            ([0, 1, 2, 3, 4], 3, [0, 1, 2, 3, 5], 3, [0, 4, 2], False),
            ([0, 1, 2, 3, 4], 3, [5, 6, 7, 8, 9], 3, [0, 1, 2, 7, 8, 9], True),
            ([0, 1, 2], 1, [0, 1, 2], 2, [1, 2], True),
            ([0, 1, 2], 1, [0, 1, 2], 2, [1], False),
            ([0, 1, 2], 2, [0, 1, 2], 1, [1, 2], True),
            ([0, 1, 2], 2, [0, 1, 2], 1, [1], False),
        ]
        for old_keys, old, keys, threshold, signs, taken in cases:
            with self.subTest(f"{old} of {old_keys} to {threshold} of {keys} by {signs}"):
                self.metadata = tempfile.mkdtemp(dir=self.folder)
                self.start(old_keys, old)
                self.rotate(keys, threshold, signs)
                self.assertEqual(self.refresh(), 0 if taken else 1, self.said)
                self.assertEqual(self.accepted()["root"], 2 if taken else 1)

    def test_many_roots_at_once(self):
        self.start([0], 1)
        for n in range(1, 10):
            self.rotate([n], 1, [n - 1, n])
        self.ok(self.refresh())
        self.versions(10, 1, 1, 1)
        self.ok(self.refresh())

    def test_lower_roles(self):
        for role in ("timestamp", "snapshot", "targets"):
            for count, signs, taken in ((3, 3, True), (3, 2, True), (3, 1, False)):
                with self.subTest(f"{role} {signs} of {count}"):
                    self.metadata = tempfile.mkdtemp(dir=self.folder)
                    repo = self.use(Repo())
                    self.ok(self.refresh())
                    keys = [signer() for _ in range(count)]
                    repo.set_keys(role, keys, 2)
                    repo.signers[role] = keys[:signs]
                    repo.publish("root")
                    repo.release()
                    self.assertEqual(self.refresh(), 0 if taken else 1, self.said)
                    self.assertEqual(self.accepted()["root"], 2)
                    # What the old keys signed is neither lost nor trusted.
                    self.assertEqual(self.accepted()[role], 2 if taken else 1)

    def test_signature_twice(self):
        repo = self.use(Repo())
        keys = [signer(), signer()]
        repo.set_keys("timestamp", keys, 2)
        repo.signers["timestamp"] = [keys[0]]
        repo.publish("root", "timestamp")
        file = json.loads(repo.data("timestamp"))
        file["signatures"] *= 2
        repo.serve("timestamp", json.dumps(file).encode())
        self.no(self.refresh(), "two signatures of key")

    def test_one_key_under_many_ids_with_wrong_signatures(self):
        repo = self.use(Repo())
        one = signer()
        repo.set_keys("timestamp", [one], 1)
        key = repo.root.keys[one.public_key.keyid]
        for n in range(3):
            repo.root.keys[f"id-{n}"] = type(key)(f"id-{n}", key.keytype, key.scheme, key.keyval)
            repo.root.roles["timestamp"].keyids.append(f"id-{n}")
        repo.root.roles["timestamp"].threshold = 2
        repo.publish("root", "timestamp")
        self.no(self.refresh(), "expected 2, found 1")


class Rollback(Case):
    def test_each_role(self):
        for role in ("timestamp", "snapshot", "targets"):
            for pins in (False, True):
                with self.subTest(f"{role} pins {pins}"):
                    self.metadata = tempfile.mkdtemp(dir=self.folder)
                    repo = self.use(Repo())
                    repo.pins = pins
                    repo.release()
                    repo.release()
                    self.ok(self.refresh())
                    repo.signed(role).version = 0
                    if role == "timestamp":
                        repo.publish("timestamp")
                    else:
                        repo.release()
                    self.no(self.refresh(), "older than seen before")
                    self.assertEqual(self.accepted()[role], 3)

    def test_fast_forward_recovery(self):
        # Who was pushed forward, and whose keys root then takes away.
        for role, rotated in (
            ("timestamp", ["timestamp"]),
            ("snapshot", ["snapshot", "timestamp"]),
            ("targets", ["snapshot"]),
        ):
            with self.subTest(role):
                self.metadata = tempfile.mkdtemp(dir=self.folder)
                repo = self.use(Repo())
                repo.signed(role).version = 99_999
                repo.release()
                self.ok(self.refresh())
                self.assertEqual(self.accepted()[role], 100_000)
                repo.signed(role).version = 1
                repo.release()
                self.no(self.refresh(), "older than seen before")
                for name in rotated:
                    repo.set_keys(name, [signer()], 1)
                repo.publish("root")
                repo.release()
                self.ok(self.refresh())
                self.assertEqual(self.accepted()[role], 3)

    def test_timestamp_of_the_same_version_is_not_taken(self):
        repo = self.use(Repo())
        self.ok(self.refresh())
        before = repo.data("timestamp")
        repo.snapshot.version = 7
        repo.publish("timestamp", bump=False)
        self.ok(self.refresh())
        with open(os.path.join(self.metadata, "timestamp.json"), "rb") as file:
            self.assertEqual(file.read(), before)

    def test_target_removed_from_snapshot(self):
        repo = self.use(Repo())
        repo.delegate("one", ["*"])
        repo.release()
        self.ok(self.refresh())
        del repo.delegated["one"]
        del repo.snapshot.meta["one.json"]
        repo.release()
        self.no(self.refresh(), "snapshot removes one.json")


class Expiry(Case):
    def test_each_role(self):
        for role in TOP:
            with self.subTest(role):
                self.metadata = tempfile.mkdtemp(dir=self.folder)
                repo = self.use(Repo())
                self.ok(self.refresh())
                repo.signed(role).expires = NOW - timedelta(days=1)
                repo.publish("root", "targets", "snapshot", "timestamp")
                self.no(self.refresh(), f"{role} metadata expired")
                # Root is kept though expired, so that the next one can be found.
                self.assertEqual(self.accepted()[role], 2 if role == "root" else 1)

    def test_expired_local_files_lead_on(self):
        repo = self.use(Repo())
        repo.timestamp.expires = NOW + timedelta(days=7)
        repo.release()
        self.ok(self.refresh())
        self.no(self.refresh(days=18), "timestamp metadata expired")
        repo.timestamp.expires = NOW + timedelta(days=21)
        repo.release()
        self.ok(self.refresh(days=18))
        self.versions(1, 3, 3, 3)

    def test_expired_first_root(self):
        repo = Repo()
        repo.root.expires = NOW - timedelta(days=400)
        repo.publish("root", bump=False)
        self.use(repo)
        repo.root.expires = NOW + timedelta(days=400)
        repo.publish("root")
        self.ok(self.refresh())


class Content(Case):
    def test_substituted_target(self):
        repo = self.use(Repo())
        repo.add_target("file", b"content")
        repo.release()
        name = next(name for name in repo.files if name.startswith("targets/"))
        for other in (b"tampered", b"content and more", b"cont", b"contenT"):
            repo.files[name] = other
            self.assertEqual(self.download("file"), 1, self.said)
            self.assertEqual(self.got(), [])

    def test_target_that_is_there_is_not_fetched_again(self):
        repo = self.use(Repo())
        repo.add_target("file", b"content")
        repo.release()
        self.ok(self.download("file"))
        repo.asked.clear()
        self.ok(self.download("file"))
        self.assertFalse([name for name in repo.asked if name.startswith("targets/")])
        with open(os.path.join(self.downloads, "file"), "wb") as file:
            file.write(b"rotten")
        self.ok(self.download("file"))
        self.assertEqual(self.got(), [b"content"])

    def test_several_targets_and_odd_paths(self):
        repo = self.use(Repo())
        paths = ["a/b/c", "with space", "per%cent", "ü", ".hidden"]
        for path in paths:
            repo.add_target(path, path.encode())
        repo.release()
        self.ok(self.download(*paths))
        self.assertEqual(sorted(self.got()), sorted(path.encode() for path in paths))

    def test_mix_and_match(self):
        repo = self.use(Repo())
        repo.pins = True
        repo.release()
        old = repo.data("targets")
        repo.release()
        repo.serve("targets", old)
        self.no(self.refresh(), "is not the file that signed metadata names")

    def test_endless_files(self):
        repo = self.use(Repo())
        repo.files["metadata/timestamp.json"] = b" " * 100_000
        self.no(self.refresh(), "too long")

    def test_wrong_first_root(self):
        repo = Repo()
        self.server.repo = repo
        path = os.path.join(self.folder, "initial.json")
        for change in ("version", "signature", "garbage"):
            file = json.loads(repo.data("root"))
            if change == "version":
                del file["signed"]["version"]
            elif change == "signature":
                file["signatures"][0]["sig"] = "00" * 64
            else:
                file = "root"
            with open(path, "w", encoding="utf-8") as out:
                json.dump(file, out)
            self.no(self.run_client("init", path), "is not a valid root.json")
            self.assertEqual(self.refresh(), 1)
            self.assertEqual(repo.asked, [])


if __name__ == "__main__":
    unittest.main()
