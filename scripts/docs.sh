#!/usr/bin/env bash
# Builds the site, build/docs/html, by Doxygen; a warning of it, or a link that leads nowhere, fails. Called by
# `make docs`. The theme is Debian's package doxygen-awesome-css; without it the site has Doxygen's own looks.
#
# DOCS_THEME  the directory of the theme's files, /usr/share/doxygen-awesome-css
set -euo pipefail
cd "$(dirname "$0")/.."

theme=${DOCS_THEME:-/usr/share/doxygen-awesome-css}
rm -rf build/docs
mkdir -p build/docs
cp docs/Doxyfile build/docs/Doxyfile
styles=(docs/site.css)
if [ -e "$theme/doxygen-awesome.css" ]; then
    # The theme's switch between light and dark is a script, which Doxygen's own header does not load.
    doxygen -w html build/docs/header.html build/docs/footer.html build/docs/style.css 2> /dev/null
    scripts=(doxygen-awesome-{darkmode-toggle,fragment-copy-button,interactive-toc}.js)
    {
        for script in "${scripts[@]}"; do
            echo "<script type=\"text/javascript\" src=\"\$relpath^$script\"></script>"
        done
        echo '<script type="text/javascript">'
        echo 'DoxygenAwesomeDarkModeToggle.init(); DoxygenAwesomeFragmentCopyButton.init(); DoxygenAwesomeInteractiveToc.init()'
        echo '</script>'
    } > build/docs/head.html
    awk '/<\/head>/ { while ((getline line < "build/docs/head.html") > 0) print line } { print }' \
        build/docs/header.html > build/docs/header_next.html
    mv build/docs/header_next.html build/docs/header.html
    styles=("$theme"/doxygen-awesome{,-sidebar-only,-sidebar-only-darkmode-toggle}.css docs/site.css)
    {
        echo "HTML_HEADER = build/docs/header.html"
        echo "HTML_EXTRA_FILES = ${scripts[*]/#/$theme/}"
    } >> build/docs/Doxyfile
else
    echo "docs: the package doxygen-awesome-css is not installed: the site has Doxygen's own looks" >&2
fi
echo "HTML_EXTRA_STYLESHEET = ${styles[*]}" >> build/docs/Doxyfile
doxygen build/docs/Doxyfile
scripts/docs_code.py --site build/docs/html
