# Puts the line that loads the plugin in place, by rename and under a name that the include does not match before:
# Slurm reads these files at any moment.
fragment=/etc/slurm/plugstack.conf.d/roce.conf
if [ "$1" = 1 ] && [ ! -e "$fragment" ]; then
    if [ -e "$fragment.disabled" ]; then
        mv "$fragment.disabled" "$fragment"
    else
        mkdir -p "${fragment%/*}"
        cp /usr/share/spank-roce/plugstack.conf "$fragment.new"
        mv "$fragment.new" "$fragment"
    fi
fi
if ! grep -qs '^[[:space:]]*include[[:space:]].*plugstack\.conf\.d/' /etc/slurm/plugstack.conf; then
    echo "spank-roce: to switch it on, add to /etc/slurm/plugstack.conf:"
    echo "  include /etc/slurm/plugstack.conf.d/*.conf"
fi
