# The hash that ties evidence to code: source_hash.py makes it.

function(baracuda_source_hash result)
  set(script "${PROJECT_SOURCE_DIR}/cmake/source_hash.py")
  file(GLOB_RECURSE files LIST_DIRECTORIES false CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/*")
  # Configure again when a file changes, or the embedded hash would be that of older code.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${script}" ${files})
  execute_process(COMMAND "${Python_EXECUTABLE}" -I "${script}"
    OUTPUT_VARIABLE digest OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(${result} "${digest}" PARENT_SCOPE)
endfunction()
