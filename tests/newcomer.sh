#!/usr/bin/env bash
# What a newcomer meets: a fresh clone, an empty home, nothing installed; then the README's two commands.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git clone --quiet "$(git rev-parse --show-toplevel)" "$place/dcz"
mkdir "$place/home"
cd "$place/dcz"

# Where packages come from is the machine's business, and pyenv's python needs to know where it is.
kept=(HOME="$place/home" PATH="$PATH" LANG=C.UTF-8 TERM=dumb)
for name in $(compgen -e | grep -E '^(PIP_|SSL_|REQUESTS_|PYENV_ROOT$)' || true); do kept+=("$name=${!name}"); done

for command in "make demo" "make test"; do
  grep -q "^    $command\b" README.md || { echo "README.md does not say '$command'" >&2; exit 1; }
  echo "== $command"
  env --ignore-environment "${kept[@]}" bash -c "$command"
done
