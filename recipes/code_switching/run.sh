#!/usr/bin/env bash
# EP-mini: train a bilingual base, adapt it to switched speech by every method, measure what is learnt and what is lost.
#   ./run.sh                          all stages; what is done already is skipped
#   ./run.sh --stage 3 --stop_stage 8 from training on
#   ./run.sh --help                   stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"

python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && -x "$root/.venv/bin/python" ]]; then
  python="$root/.venv/bin/python"
fi

printf -v NEMO_MERGE_COMMAND '%q ' "$0" "$@"  # what messages and RESULTS.md call this command
export NEMO_MERGE_COMMAND
exec "$python" -m nemo_merge.stages --config "$here/conf/code_switching.yaml" "$@"
