# Read by every shell of a node (node.sh adds it to ~/.bashrc), and so by `ray start` and all that Ray starts there.
# More than once: bash reads ~/.bashrc below an SSH session also in the shell that starts each of Ray's workers. What
# is there already stays first, above all the folder of a job, which Ray has put into PYTHONPATH by then.
case ":$PATH:" in
  *":$HOME/prdp/.venv/bin:"*) ;;
  *) export PATH="$HOME/prdp/.venv/bin:$PATH" ;;
esac
# The code of rewards that are deployed by themselves.
case ":${PYTHONPATH:-}:" in
  *":$HOME/prdp:"*) ;;
  *) export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$HOME/prdp" ;;
esac
# Nobody without the token in ~/.ray/auth_token is answered.
export RAY_AUTH_MODE=token
# `ray job stop` kills a job that has not ended so many seconds after SIGTERM; Ray's own limit of 3 s is too short to
# finish the updates of an epoch and to write a checkpoint.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-900}"
# Machines of your own: ~/prdp/roles.txt says which role this one has. Elsewhere its node type says so.
PRDP_LABELS=""
if [ -f "$HOME/prdp/roles.txt" ]; then
  for name in $(hostname -I) $(hostname); do
    PRDP_LABELS="${PRDP_LABELS:-$(awk -v name="$name" '$1 == name { print "role=" $2; exit }' "$HOME/prdp/roles.txt")}"
  done
fi
export PRDP_LABELS
