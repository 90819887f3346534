#!/usr/bin/env bash
# One run of hisam on TPU slices of a GKE cluster, as a JobSet: one Job a slice, one pod a host, one process a pod.
#     launch/gke_jobset.sh [--dry-run] -- train --dataset D --ids I --config configs/hmat_1b.py --workdir RUN
# Renders the YAML and applies it with kubectl; the cluster needs the JobSet controller. More in README.md beside this.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-hisam}                                   # the command in the image; words split at spaces
IMAGE=${IMAGE:-}                                        # an image with hisam_jax[tpu]; required
NAME=${NAME:-hisam}                                     # name of the JobSet
NAMESPACE=${NAMESPACE:-default}                         # namespace of the JobSet
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}        # cloud.google.com/gke-tpu-accelerator of the node pool
TOPOLOGY=${TOPOLOGY:-4x4}                               # cloud.google.com/gke-tpu-topology of a slice
HOSTS_PER_SLICE=${HOSTS_PER_SLICE:-4}                   # hosts of that topology
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}                     # chips of each host
SLICES=${SLICES:-1}                                     # more than one: mesh.data, a multiple of it, crosses them
CLAIM=${CLAIM:-}                                        # a PersistentVolumeClaim with data and runs, at /data; or none
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}             # Kubernetes service account of the pods
GRACE=${GRACE:-120}                                     # seconds from SIGTERM to SIGKILL, to save a checkpoint in
MAX_RESTARTS=${MAX_RESTARTS:-20}                        # times that the whole set is started again
HISAM_JOIN_TIMEOUT=${HISAM_JOIN_TIMEOUT:-900}           # seconds in which all must have joined; images are pulled first
HISAM_HEARTBEAT_TIMEOUT=${HISAM_HEARTBEAT_TIMEOUT:-100} # seconds of silence after which a process counts as dead
# ----

# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
take_verb "$@"
[ -n "$IMAGE" ] || refuse "field 'IMAGE': not set; expected an image with hisam_jax[tpu] that the cluster can pull"
[[ $TOPOLOGY =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || refuse "field 'TOPOLOGY': value '$TOPOLOGY'; expected such as 4x4"
whole_numbers HOSTS_PER_SLICE CHIPS_PER_HOST SLICES GRACE MAX_RESTARTS HISAM_JOIN_TIMEOUT HISAM_HEARTBEAT_TIMEOUT
chips=$((${TOPOLOGY//x/*}))
[ "$chips" = $((HOSTS_PER_SLICE * CHIPS_PER_HOST)) ] ||
  refuse "TOPOLOGY $TOPOLOGY has $chips chips; expected HOSTS_PER_SLICE x CHIPS_PER_HOST = $HOSTS_PER_SLICE x $CHIPS_PER_HOST"
read -ra program <<<"$HISAM"

quoted() { # a JSON string, which YAML reads as it is
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//$'\t'/\\t}"
}
command=""
opening="\$("
for word in "${program[@]}" "${verb[@]}"; do
  command+="${command:+, }$(quoted "${word//"$opening"/\$$opening}")" # Kubernetes would fill in $(NAME); $$( is a plain $(
done
mounts="" volumes=""
if [ -n "$CLAIM" ]; then
  mounts=$'\n                  volumeMounts: [{name: data, mountPath: /data}]'
  volumes=$'\n              volumes: [{name: data, persistentVolumeClaim: {claimName: '"$(quoted "$CLAIM")}}]"
fi

# Exit codes 1 and 2 (a fault, a mistake) end the set at once; any other, such as 75 and 143, starts it again as a whole.
yaml="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$NAME")
  namespace: $(quoted "$NAMESPACE")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS_PER_SLICE
          completions: $HOSTS_PER_SLICE
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: hisam, operator: In, values: [1, 2]}
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $(quoted "$SERVICE_ACCOUNT")
              terminationGracePeriodSeconds: $GRACE
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(quoted "$ACCELERATOR")
                cloud.google.com/gke-tpu-topology: $(quoted "$TOPOLOGY")
              containers:
                - name: hisam
                  image: $(quoted "$IMAGE")
                  command: [$command]
                  env:
                    - {name: HISAM_DISTRIBUTED, value: auto}
                    - {name: HISAM_JOIN_TIMEOUT, value: \"$HISAM_JOIN_TIMEOUT\"}
                    - {name: HISAM_HEARTBEAT_TIMEOUT, value: \"$HISAM_HEARTBEAT_TIMEOUT\"}
                    - {name: PYTHONUNBUFFERED, value: \"1\"}
                  ports: [{containerPort: 8471}, {containerPort: 8080}, {containerPort: 8482}]
                  resources:
                    requests: {google.com/tpu: $CHIPS_PER_HOST}
                    limits: {google.com/tpu: $CHIPS_PER_HOST}$mounts$volumes"

if [ -n "$dry" ]; then
  printf '%s\n' "$yaml"
  exit 0
fi
type kubectl >/dev/null 2>&1 || refuse "no kubectl on this machine"
kubectl apply -f - <<<"$yaml"
echo "launch: output, each line with its pod: kubectl logs -n $NAMESPACE -l jobset.sigs.k8s.io/jobset-name=$NAME \
--prefix --follow --max-log-requests $((SLICES * HOSTS_PER_SLICE))" >&2
