"""What Chromium needs before it starts: a home with a certificate store, and a policy that shows the certificate.

Without the policy the browser would ask its user; it is read from /etc/chromium only, so the browser gets a mount
namespace in which its policy stands there. That takes root."""

import json
import subprocess

PASSWORD = b"interop"
WRAPPER = """#!/bin/sh
exec unshare --mount sh -c 'mount --bind "$0" /etc/chromium && exec chromium "$@"' '{home}/etc' "$@"
"""


def prepare(home, files):
    """Fills the folder; returns the program that starts the browser there."""
    store, etc, wrapper = home / ".pki/nssdb", home / "etc", home / "chromium"
    store.mkdir(parents=True)
    run("certutil", "-d", f"sql:{store}", "-N", "--empty-password")
    run("certutil", "-d", f"sql:{store}", "-A", "-n", "authority", "-t", "C,,", "-i", files.authority.cert)
    (home / "client.p12").write_bytes(files.client.pkcs12(PASSWORD))
    run("pk12util", "-d", f"sql:{store}", "-i", home / "client.p12", "-W", PASSWORD.decode(), "-K", "")
    policy = {"AutoSelectCertificateForUrls": [json.dumps({"pattern": "https://127.0.0.1", "filter": {}})]}
    (etc / "policies/managed").mkdir(parents=True)
    (etc / "policies/managed/interop.json").write_text(json.dumps(policy), encoding="utf-8")
    wrapper.write_text(WRAPPER.format(home=home), encoding="utf-8")
    wrapper.chmod(0o755)
    return wrapper


def may_show_certificates():
    """Whether the namespace can be had."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, timeout=10, check=False).returncode == 0


def run(*command):
    subprocess.run([str(word) for word in command], check=True, timeout=30, capture_output=True)
