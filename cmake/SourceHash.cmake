# The hash that ties evidence to code, the same as
#   find src -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16
# at the top of the tree.

function(baracuda_source_hash result)
  file(GLOB_RECURSE files LIST_DIRECTORIES false RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS
    "${PROJECT_SOURCE_DIR}/src/*")
  list(SORT files COMPARE STRING)
  set(lines "")
  foreach(file IN LISTS files)
    file(SHA256 "${PROJECT_SOURCE_DIR}/${file}" digest)
    string(APPEND lines "${digest}  ${file}\n")
    # Configure again when a file changes, or the embedded hash would be that of older code.
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${file}")
  endforeach()
  string(SHA256 digest "${lines}")
  string(SUBSTRING "${digest}" 0 16 digest)
  set(${result} "${digest}" PARENT_SCOPE)
endfunction()
