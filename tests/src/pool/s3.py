"""Changes what a bucket holds behind the back of whoever uses it: s3.py ENDPOINT COMMAND BUCKET [ARGUMENTS].

  keys BUCKET PREFIX           prints the keys
  empty BUCKET KEPT            deletes everything but keys that end with KEPT
  flip BUCKET PREFIX SEED      flips one bit in every object
  truncate BUCKET PREFIX       cuts every object in the middle

Credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Only what Python brings along is used.
"""

import base64
import datetime
import hashlib
import hmac
import http.client
import os
import random
import sys
import urllib.parse
import xml.etree.ElementTree as tree

REGION = os.environ.get("AWS_REGION", "us-east-1")


class Store:
    def __init__(self, endpoint):
        self.host = urllib.parse.urlparse(endpoint).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=30)

    def request(self, method, path, query=(), body=b"", headers=None):
        """One request, signed as AWS Signature Version 4 wants it."""
        moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self.host, "x-amz-date": moment, "x-amz-content-sha256": digest, **(headers or {})}
        names = ";".join(sorted(headers))
        quoted = urllib.parse.quote(path)
        asked = "&".join(f"{urllib.parse.quote(k, safe='')}={urllib.parse.quote(v, safe='')}" for k, v in sorted(query))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = "\n".join([method, quoted, asked, lines, names, digest])
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        who = f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
        headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={names}, Signature={signature}"
        self.connection.request(method, quoted + ("?" + asked if asked else ""), body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status == 404 and method == "GET" and path.count("/") > 1:
            return None
        if answer.status >= 300:
            sys.exit(f"{method} {path} {asked}: {answer.status} {content[:500]!r}")
        return content

    def keys(self, bucket, prefix):
        after = ""
        while True:
            query = [("list-type", "2"), ("prefix", prefix), ("start-after", after)]
            root = tree.fromstring(self.request("GET", f"/{bucket}", query))
            space = root.tag[: root.tag.index("}") + 1] if "}" in root.tag else ""
            found = [entry.text for entry in root.iter(f"{space}Key")]
            yield from found
            if not found or root.findtext(f"{space}IsTruncated") != "true":
                return
            after = found[-1]

    def delete(self, bucket, keys):
        objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
        check = base64.b64encode(hashlib.md5(body).digest()).decode()
        said = self.request("POST", f"/{bucket}", [("delete", "")], body, {"content-md5": check})
        if b"<Error>" in said:
            sys.exit(f"deleting from {bucket}: {said[:500]!r}")


def main():
    store = Store(sys.argv[1])
    command, bucket, arguments = sys.argv[2], sys.argv[3], sys.argv[4:]
    keys = list(store.keys(bucket, "" if command == "empty" else arguments[0]))
    done = 0
    if command == "keys":
        print("\n".join(keys))
        return
    if command == "empty":
        gone = [key for key in keys if not (arguments[0] and key.endswith(arguments[0]))]
        for at in range(0, len(gone), 1000):
            store.delete(bucket, gone[at : at + 1000])
        done = len(gone)
    elif command in ("flip", "truncate"):
        choose = random.Random(int(arguments[1])) if command == "flip" else None
        for key in keys:
            content = store.request("GET", f"/{bucket}/{key}")
            if not content:
                continue
            if choose:
                content = bytearray(content)
                content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
            else:
                content = content[: len(content) // 2]
            store.request("PUT", f"/{bucket}/{key}", body=bytes(content))
            done += 1
    else:
        sys.exit(f"no such command: {command}")
    print(done)


main()
