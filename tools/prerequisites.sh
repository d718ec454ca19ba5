#!/bin/sh
# Say which Debian packages are missing, as the one line that installs them. Nothing is installed from here.
# Usage: prerequisites.sh PYTHON CC
python=$1
cc=$2
missing=""

if ! command -v "$python" >/dev/null 2>&1; then
	missing="python3 python3-venv python3-dev"
else
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "vmbusirq needs Python 3.11 or later; $python is $("$python" -V 2>&1)." >&2
		exit 1
	}
	"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
	"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing="$missing python3-dev"
fi
command -v "$cc" >/dev/null 2>&1 || missing="$missing gcc"
echo '#include <stdint.h>' | "$cc" -fsyntax-only -x c - 2>/dev/null || case "$missing" in *gcc*) ;; *) missing="$missing libc6-dev" ;; esac

if [ -n "$missing" ]; then
	missing=$(echo $missing)
	echo "vmbusirq needs what this system lacks: $missing" >&2
	echo "    sudo apt-get install $missing" >&2
	exit 1
fi
