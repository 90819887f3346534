#!/usr/bin/env bash
# A sweep on a GKE cluster, an indexed Job of which each pod does one cell:
#     launch/gke_array.sh [--dry-run] -- scale configs/scaling/shop.py --out /data/SWEEP
# Renders the YAML and applies it with kubectl. CLAIM is a volume that many nodes may write to (Filestore, NFS), whose
# file locks work. A cell uses all chips of its pod, one host. More in README.md beside this.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-hisam}                             # the command in the image; words split at spaces
IMAGE=${IMAGE:-}                                  # an image with hisam_jax[tpu]; required
CLAIM=${CLAIM:-}                                  # the PersistentVolumeClaim with data and sweep, at /data; required
CELLS=${CELLS:-}                                  # cells of the sweep; empty: what `hisam scale --list` says here
AT_ONCE=${AT_ONCE:-16}                            # pods at a time
NAME=${NAME:-hisam-scale}                         # name of the Job
NAMESPACE=${NAMESPACE:-default}                   # namespace of the Job
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}  # cloud.google.com/gke-tpu-accelerator of the node pool
TOPOLOGY=${TOPOLOGY:-1x1}                         # cloud.google.com/gke-tpu-topology of a slice of one host
CHIPS=${CHIPS:-1}                                 # chips of it
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}       # Kubernetes service account of the pods
GRACE=${GRACE:-120}                               # seconds from SIGTERM to SIGKILL, to save a checkpoint in
MAX_RESTARTS=${MAX_RESTARTS:-20}                  # times that a cell's pod is started again
# ----

# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
take_verb "$@"
[ -n "$IMAGE" ] || refuse "field 'IMAGE': not set; expected an image with hisam_jax[tpu] that the cluster can pull"
[ -n "$CLAIM" ] || refuse "field 'CLAIM': not set; expected a PersistentVolumeClaim that many nodes may write to"
read -ra program <<<"$HISAM"
count_cells
whole_numbers CELLS AT_ONCE CHIPS GRACE MAX_RESTARTS
command=$(printf '%q ' exec "${program[@]}" "${verb[@]}")
command+="--only \$((JOB_COMPLETION_INDEX + 1))"
command=${command//\\/\\\\}
command=${command//\"/\\\"}
opening="\$("
command=${command//"$opening"/\$$opening} # Kubernetes would fill in $(NAME); $$( is a plain $(

# Exit code 2 (a mistake) ends the cell at once; any other, such as 75 and 143, starts it again.
yaml="apiVersion: batch/v1
kind: Job
metadata:
  name: \"$NAME\"
  namespace: \"$NAMESPACE\"
spec:
  completions: $CELLS
  parallelism: $AT_ONCE
  completionMode: Indexed
  backoffLimitPerIndex: $MAX_RESTARTS
  podFailurePolicy:
    rules:
      - action: FailIndex
        onExitCodes: {containerName: hisam, operator: In, values: [2]}
  template:
    spec:
      restartPolicy: Never
      serviceAccountName: \"$SERVICE_ACCOUNT\"
      terminationGracePeriodSeconds: $GRACE
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: \"$ACCELERATOR\"
        cloud.google.com/gke-tpu-topology: \"$TOPOLOGY\"
      containers:
        - name: hisam
          image: \"$IMAGE\"
          command: [bash, -c, \"$command\"]
          env:
            - {name: PYTHONUNBUFFERED, value: \"1\"}
          resources:
            requests: {google.com/tpu: $CHIPS}
            limits: {google.com/tpu: $CHIPS}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: \"$CLAIM\"}}]"

if [ -n "$dry" ]; then
  printf '%s\n' "$yaml"
  exit 0
fi
type kubectl >/dev/null 2>&1 || refuse "no kubectl on this machine"
kubectl apply -f - <<<"$yaml"
echo "launch: output, each line with its pod: kubectl logs -n $NAMESPACE -l job-name=$NAME --prefix --follow" >&2
