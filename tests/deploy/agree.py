"""The files under deploy/ name the same ports, users, paths and nodes in many places: checks that they agree.

Usage: agree.py RENDERED.yaml... (output of `kubectl kustomize`), run from the root of the repository.
"""

import pathlib
import re
import sys

import tomli
import yaml

COMPOSE = "deploy/compose/compose.yaml"
CONTAINERFILE = "deploy/image/Containerfile"
PORTS = {"mqtt": 1883, "admin": 8080, "cluster": 7883}

problems = []


def expect(truth, text):
    if not truth:
        problems.append(text)


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def ports_of(config):
    """The ports that a configuration file opens, by the names that the manifests give them."""
    (listener,) = config["listener"]
    return {
        "mqtt": port_of(listener["bind"]),
        "admin": port_of(config["admin"]["bind"]),
        "cluster": port_of(config["cluster"]["bind"]),
    }


def check_image():
    text = pathlib.Path(CONTAINERFILE).read_text(encoding="utf-8")
    exposed = {int(port) for port in re.findall(r"(\d+)/tcp", re.search(r"^EXPOSE (.*)$", text, re.M)[1])}
    expect(exposed == set(PORTS.values()), f"{CONTAINERFILE} exposes {exposed}")
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    expect(f"--chown={user[1]}:{user[2]} " in text, f"{CONTAINERFILE}: /data is not owned by its user")
    return int(user[1])


def check_kubernetes(file, uid):
    with open(file, encoding="utf-8") as stream:
        documents = [document for document in yaml.safe_load_all(stream) if document]
    for document in documents:
        expect("namespace" not in document["metadata"], f"{file}: {document['kind']} names a namespace")
    by_kind = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    workload = by_kind["StatefulSet", "flotte"]
    spec = workload["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    config_name = next(name for kind, name in by_kind if kind == "ConfigMap")
    config = tomli.loads(by_kind["ConfigMap", config_name]["data"]["flotte.toml"])

    check_kubernetes_cluster(file, by_kind, spec, pod, container, config)
    check_kubernetes_restricted(file, pod, container, uid)
    check_kubernetes_mounts(file, spec, pod, container, config, config_name)


def check_kubernetes_cluster(file, by_kind, spec, pod, container, config):
    """Names, ports, and how nodes find each other and end."""
    cluster = config["cluster"]
    headless = by_kind["Service", spec["serviceName"]]["spec"]
    names = [f"flotte-{ordinal}.{spec['serviceName']}:{PORTS['cluster']}" for ordinal in range(spec["replicas"])]
    expect(cluster["join"] == names, f"{file}: join is {cluster['join']}, the pods are {names}")
    expect(cluster["bootstrap_expect"] == spec["replicas"], f"{file}: bootstrap_expect is not replicas")
    expect(cluster["insecure"] is True, f"{file}: cluster.insecure has to be true until there is TLS between nodes")
    expect(config["auth"]["allow_anonymous"] is False, f"{file}: anonymous clients are let in")
    expect(spec["podManagementPolicy"] == "Parallel", f"{file}: pods are started one by one")
    expect(headless["clusterIP"] == "None", f"{file}: the service of the set is not headless")
    expect(headless["publishNotReadyAddresses"] is True, f"{file}: nodes that are not ready have no name")
    expect(
        pod["terminationGracePeriodSeconds"] > cluster["drain_timeout_s"] + 10,
        f"{file}: a draining node would be killed",
    )
    expect(pod["enableServiceLinks"] is False, f"{file}: the Service leaks into FLOTTE_* variables")
    expect(ports_of(config) == PORTS, f"{file}: flotte.toml opens {ports_of(config)}")
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    expect(declared == PORTS, f"{file}: the container declares {declared}")
    for (kind, name), document in by_kind.items():
        if kind == "Service":
            for port in document["spec"]["ports"]:
                expect(PORTS[port["targetPort"]] == port["port"], f"{file}: port {port['name']} of Service {name}")
        if kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            check_selector(file, kind, name, document["spec"], spec["template"]["metadata"]["labels"])
    environment = {variable["name"]: variable for variable in container["env"]}
    expect(
        environment["FLOTTE_CLUSTER__ADVERTISE"]["value"] == f"$(POD_NAME).{spec['serviceName']}:{PORTS['cluster']}",
        f"{file}: the advertised name is not that of the pod",
    )
    cluster_rules = [
        rule
        for rule in by_kind["NetworkPolicy", "flotte"]["spec"]["ingress"]
        if any(port["port"] == "cluster" for port in rule["ports"])
    ]
    expect(
        len(cluster_rules) == 1
        and len(cluster_rules[0]["ports"]) == 1
        and [list(source) for source in cluster_rules[0]["from"]] == [["podSelector"]],
        f"{file}: the cluster port is open to others than the pods",
    )
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    expect(
        probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}, f"{file}: probes {probes}"
    )


def check_selector(file, kind, name, spec, labels):
    selector = spec.get("podSelector") or spec["selector"]
    wanted = selector.get("matchLabels", selector)
    expect(wanted and wanted.items() <= labels.items(), f"{file}: {kind} {name} does not select the pods")


def check_kubernetes_restricted(file, pod, container, uid):
    """The `restricted` profile of the Pod Security Standards, and a read-only root besides."""
    context, inner = pod["securityContext"], container["securityContext"]
    expect(context["runAsNonRoot"] is True, f"{file}: may run as root")
    expect(context["runAsUser"] == context["fsGroup"] == uid, f"{file}: the user is not that of the image, {uid}")
    expect(context["seccompProfile"]["type"] == "RuntimeDefault", f"{file}: no seccomp profile")
    expect(inner["allowPrivilegeEscalation"] is False, f"{file}: privilege escalation")
    expect(inner["capabilities"] == {"drop": ["ALL"]}, f"{file}: capabilities are kept")
    expect(inner["readOnlyRootFilesystem"] is True, f"{file}: the root file system is writable")


def check_kubernetes_mounts(file, spec, pod, container, config, config_name):
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    expect(mounts[config["node"]["data_dir"]] in claims, f"{file}: the data directory is no persistent volume")
    directory, name = config["auth"]["password-file"]["file"].rsplit("/", 1)
    expect("secret" in volumes[mounts[directory]] and name == "passwords", f"{file}: the password file is no secret")
    directory = container["args"][-1].rsplit("/", 1)[0]
    expect(volumes[mounts[directory]]["configMap"]["name"] == config_name, f"{file}: the configuration is not mounted")


def check_compose():
    with open(COMPOSE, encoding="utf-8") as stream:
        compose = yaml.safe_load(stream)
    config = tomli.loads(pathlib.Path("deploy/compose/flotte.toml").read_text(encoding="utf-8"))
    nodes = {name: service for name, service in compose["services"].items() if name.startswith("node")}
    addresses = [f"{node['networks']['cluster']['ipv4_address']}:{PORTS['cluster']}" for node in nodes.values()]
    expect(config["cluster"]["join"] == addresses, f"{COMPOSE}: the nodes are {addresses}")
    expect(config["cluster"]["bootstrap_expect"] == len(nodes) == 3, f"{COMPOSE}: bootstrap_expect")
    expect(ports_of(config) == PORTS, f"{COMPOSE}: flotte.toml opens {ports_of(config)}")
    for name, node in nodes.items():
        environment = node["environment"]
        address = f"{node['networks']['cluster']['ipv4_address']}:{PORTS['cluster']}"
        expect(environment["FLOTTE_NODE__NAME"] == name, f"{COMPOSE}: the name of {name}")
        expect(environment["FLOTTE_CLUSTER__ADVERTISE"] == address, f"{COMPOSE}: the address of {name}")
        expect(f"{name}:{config['node']['data_dir']}" in node["volumes"], f"{COMPOSE}: the volume of {name}")
    with open("deploy/compose/prometheus.yaml", encoding="utf-8") as stream:
        (job,) = yaml.safe_load(stream)["scrape_configs"]
    scraped = {target: entry["labels"]["node"] for entry in job["static_configs"] for target in entry["targets"]}
    served = {f"{node['networks']['cluster']['ipv4_address']}:{PORTS['admin']}": name for name, node in nodes.items()}
    expect(scraped == served, f"{COMPOSE}: Prometheus scrapes {scraped}")
    for name, service in compose["services"].items():
        for port in service["ports"]:
            expect(port.startswith("127.0.0.1:"), f"{COMPOSE}: {name} publishes {port}, and anonymous clients are let in")
            expect(not port.endswith(f":{PORTS['cluster']}"), f"{COMPOSE}: {name} publishes its cluster port")


def main():
    uid = check_image()
    for file in sys.argv[1:]:
        check_kubernetes(file, uid)
    check_compose()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
