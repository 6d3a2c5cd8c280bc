"""The stack's files say what they should: nothing open but the dashboard, no passwords, commands that exist."""

import re
import shlex
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from tests.support.documents import ROOT, parse

VARIABLE = re.compile(r"\$\{(\w+)(?:(:?[-?])([^}]*))?\}")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name in SERVICES if name != "database"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SKY = yaml.safe_load((ROOT / "deploy" / "sky.yaml").read_text())
JOB = yaml.safe_load((ROOT / "deploy" / "kubernetes-job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]


def with_defaults(text):
    """Return a value of the compose file as it is where no variable is set."""
    return VARIABLE.sub(lambda match: match[3] if match[2] in ("-", ":-") else "", text)


@pytest.mark.parametrize("service", OURS)
def test_every_command_of_the_compose_file_exists_and_takes_its_options(service):
    words = [with_defaults(word) for word in SERVICES[service]["command"]]
    assert parse(words) in {"study create", "dashboard", "worker"}


def test_an_option_that_is_not_there_would_be_noticed():
    with pytest.raises(Exception, match="No such option"):
        parse(["worker", "--no-such-option"])


def test_only_the_dashboard_is_published_and_on_this_box_alone():
    published = {name: service.get("ports") for name, service in SERVICES.items() if service.get("ports")}
    assert {name: list(map(with_defaults, ports)) for name, ports in published.items()} == {
        "dashboard": ["127.0.0.1:8080:8080"]
    }
    assert not any(service.get("network_mode") or service.get("privileged") for service in SERVICES.values())


def test_who_else_uses_a_gpu_can_be_seen_by_its_worker_and_nobody_else_sees_the_host():
    assert {name for name, service in SERVICES.items() if service.get("pid") == "host"} == {"worker-gpu"}


def test_no_password_is_written_down_and_none_may_be_forgotten():
    for service in SERVICES.values():
        secrets = [value for key, value in service["environment"].items() if "PASSWORD" in key]
        assert secrets
        for value in secrets:
            (match,) = VARIABLE.finditer(value)
            assert match[0] == value
            assert match[2] == ":?"  # compose stops and says what to do
    assert "BUDGETTUNE_DASHBOARD_PASSWORD" in SERVICES["dashboard"]["environment"]
    example = (ROOT / "deploy" / "env.example").read_text()
    assigned = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    assert assigned == {"POSTGRES_PASSWORD": "", "DASHBOARD_PASSWORD": ""}
    assert ":" not in with_defaults(SERVICES["worker"]["environment"]["BUDGETTUNE_STORAGE"]).partition("//")[2]


def test_services_start_when_what_they_need_is_there():
    assert SERVICES["create"]["depends_on"]["database"]["condition"] == "service_healthy"
    for name in set(OURS) - {"create"}:
        assert SERVICES[name]["depends_on"]["create"]["condition"] == "service_completed_successfully"
    assert "--skip-if-exists" in SERVICES["create"]["command"]
    assert "restart" not in SERVICES["create"]
    assert "healthcheck" in SERVICES["database"]
    assert "/healthz" in SERVICES["dashboard"]["healthcheck"]["test"][-1]


def test_the_cpu_worker_is_the_default_and_the_gpu_worker_reserves_what_it_needs():
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["worker-gpu"]
    worker = SERVICES["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert with_defaults(worker["build"]["args"]["TORCH_INDEX"]) == ""
    assert worker["image"] != SERVICES["worker"]["image"]


def test_data_outlives_containers_and_ours_can_write_nowhere_else():
    named = set(COMPOSE["volumes"])
    mounts = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert mounts == named
    assert all(SERVICES[name]["read_only"] and SERVICES[name]["cap_drop"] == ["ALL"] for name in OURS)


def test_images_are_pinned_and_the_process_is_not_root():
    pinned = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?-[\w-]+")
    assert pinned.fullmatch(SERVICES["database"]["image"])
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${PYTHON_IMAGE}"}
    assert pinned.fullmatch(re.search(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)[1])
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert int(re.search(r"^USER (\d+)", last_stage, re.MULTILINE)[1]) >= 1000
    assert last_stage.index("USER") < last_stage.index("ENTRYPOINT")


def test_the_image_holds_the_torch_that_the_tests_run_with():
    makefile = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert re.search(r'^ARG TORCH="(.+)"$', DOCKERFILE, re.MULTILINE)[1] == makefile
    assert with_defaults(SERVICES["worker"]["build"]["args"]["TORCH"]) == makefile


def test_dependencies_are_installed_before_the_code_is_copied():
    steps = [DOCKERFILE.index(step) for step in ("$TORCH\n", "COPY pyproject.toml", "requirements.txt\n", "COPY . .")]
    assert steps == sorted(steps)


def test_what_the_package_is_built_from_reaches_the_image_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"], "pyproject.toml"}
    assert kept == needed | {project["project"]["readme"]}
    assert all((ROOT / name).exists() for name in kept)


def test_the_kubernetes_job_has_commands_that_exist_and_no_passwords():
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    containers = [*POD["initContainers"], *POD["containers"]]
    assert [parse(container["args"]) for container in containers] == ["study create", "worker"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert f"USER {POD['securityContext']['runAsUser']}\n" in DOCKERFILE
    mounts = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["volumes"]}
    for container in containers:
        assert all("secretKeyRef" in variable["valueFrom"] for variable in container["env"])
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_pod_that_finds_nothing_open_leaves_and_one_that_is_lost_is_replaced():
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] > 1
    assert JOB["spec"]["backoffLimit"] > 0
    assert "--leave" in POD["containers"][0]["args"]
    assert POD["terminationGracePeriodSeconds"] >= 30


def with_queue(job):
    """Return the Job with its label for Kueue, which stands in a comment, as a user writes it."""
    text = (ROOT / "deploy" / "kubernetes-job.yaml").read_text().replace("  # labels:", "  labels:")
    assert yaml.safe_load(text)["metadata"].pop("labels") == {"kueue.x-k8s.io/queue-name": "QUEUE"}
    return yaml.safe_load(text)


def with_a_wrong_key(job):
    return {**job, "spec": {**job["spec"], "backofLimit": 20}}


@pytest.mark.parametrize(("change", "is_valid"), [(dict, True), (with_queue, True), (with_a_wrong_key, False)])
def test_kubernetes_takes_the_job_by_its_schema(change, is_valid):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here")
    newest = kubernetes_validate.latest_version()
    with nullcontext() if is_valid else pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(change(JOB), newest, strict=True)


def test_kueue_gets_what_each_pod_asks_for():
    assert all(container["resources"]["requests"] for container in POD["containers"])


def test_the_file_for_skypilot_has_a_command_that_exists_and_no_password():
    words = shlex.split(SKY["run"].replace("$STUDY", SKY["envs"]["STUDY"]))
    assert (words[0], Path(words[1]).name) == ("exec", "budgettune")
    assert parse(words[2:]) == "worker"
    assert "--leave" in words
    assert SKY["secrets"] == {"BUDGETTUNE_STORAGE": None}
    assert set(SKY) <= {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
