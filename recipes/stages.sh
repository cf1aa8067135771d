# What every recipe's run.sh sources: root and python, and the command as the user typed it, for messages and RESULTS.md.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && -x "$root/.venv/bin/python" ]]; then
  python="$root/.venv/bin/python"
fi

printf -v NEMO_MERGE_COMMAND '%q ' "$0" "$@"
export NEMO_MERGE_COMMAND
