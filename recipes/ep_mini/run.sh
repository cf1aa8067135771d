#!/usr/bin/env bash
# EP-mini: synthesise speech, train a base and three experts, merge them by every method, score, report.
#   ./run.sh                          all stages; what is done already is skipped
#   ./run.sh --stage 4 --stop_stage 8 from merging on
#   ./run.sh --help                   stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/ep_mini.yaml" "$@"
