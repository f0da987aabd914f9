#!/bin/sh
# ccache, but not for what has .incbin: in depend mode ccache does not look inside, and gives an old kernel's image.
case " $* " in
*.S\ * | */kernel/configs.c\ * | */kernel/kheaders.c\ *) exec "$@" ;;
*) exec ccache "$@" ;;
esac
